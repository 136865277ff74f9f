"""Read a `Checkpoint` from a folder or a hub name: configuration, backbone, head, tokenizer, contract and calibration."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rewardserve.model import hidden_reference
from rewardserve.model.calibration import Calibration
from rewardserve.model.checkpoint import weights
from rewardserve.model.checkpoint.adapters import (
    ADAPTER_CONFIG,
    adapter_files,
    grow_embeddings,
    merge_backbone,
    refuse_shared_layers,
    unread_adapter_files,
)
from rewardserve.model.checkpoint.files import check_files
from rewardserve.model.checkpoint.heads import HEADS_FILE, base_of_heads, find_head, layers_of_heads, value_head_files
from rewardserve.model.checkpoint.max_length import DEFAULT_MAX_TOKENS, max_row_tokens, position_table_size
from rewardserve.model.checkpoint.packaged_bases import PACKAGED_BASES, packaged_base_like
from rewardserve.model.checkpoint.record import DTYPES, READ_DEFAULTS, Checkpoint, CheckpointError, ReadOptions
from rewardserve.model.checkpoint.remote_code import refuse_remote_code
from rewardserve.model.checkpoint.transformers_logging import quiet_transformers
from rewardserve.model.contract import ObservedFacts, ScoringContract
from rewardserve.model.layout_rules import LAYOUT_RULES, LayoutRule
from rewardserve.model.network import SINGLE_HEAD, RewardNetwork, attention_for, hidden_width, looks_ahead
from rewardserve.model.text.nearest_word import did_you_mean
from rewardserve.model.tokenization.encoding_policy import (
    EncodingPolicy,
    infer_policy,
    template_digest,
    tokenizer_digest,
)

CHAT_TEMPLATE = "chat_template.jinja"
"""The file of transformers. Beside an adapter or bare heads without a tokenizer it replaces the base model's template."""
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_PICKLES = ["*.bin"]


def read(path_or_name: str, options: ReadOptions = READ_DEFAULTS, *, device: str = "cpu") -> Checkpoint:
    """Read a reward model, for serving or for further training. Raise `CheckpointError`."""
    return load_weights(read_without_weights(path_or_name, options), device=device)


def read_without_weights(path_or_name: str, options: ReadOptions = READ_DEFAULTS) -> Checkpoint:
    """Read everything but the backbone's weights: it has shapes only (torch's meta device) and cannot compute.

    For an engine that loads the weights. The heads are read. Raise `CheckpointError`.
    """
    folder = resolve(path_or_name, allow_pickle=options.allow_pickle)
    check_files(folder)
    base = _base_of(folder, allow_pickle=options.allow_pickle)
    if base != folder:
        check_files(base)
    parts = [*adapter_files(folder), *value_head_files(folder), *weights.weight_files(folder)]
    weights.refuse_pickles([*parts, *weights.weight_files(base)], allowed=options.allow_pickle)
    weights.refuse_duplicates(weights.weight_files(base))
    contract = None if options.ignores_contract else ScoringContract.load(folder)
    notes = refuse_remote_code(
        [folder, base], ignored=options.ignore_checkpoint_code, has_contract=ScoringContract.is_in(folder)
    )
    config = _config_of(folder, base)
    chosen = _choose_dtype(options.dtype, config, contract)
    backbone = _outline_backbone(base, config, chosen)
    if (folder / ADAPTER_CONFIG).is_file():
        grow_embeddings(backbone, folder)
    width = hidden_width(backbone)
    form, head = find_head(folder, base, config, width)
    rule = contract.rule if contract is not None else _rule_of(form, options)
    if (folder / ADAPTER_CONFIG).is_file():
        form = f"adapter ({form} head)"
    network = RewardNetwork(backbone, head.weight_HD, head.names, head.weights, head.bias_H).eval()
    has_tokenizer = _has_tokenizer(folder)
    tokenizer = read_tokenizer(folder if has_tokenizer else base)
    if not has_tokenizer and (folder / CHAT_TEMPLATE).is_file():
        tokenizer.chat_template = (folder / CHAT_TEMPLATE).read_text(encoding="utf-8")
    # TRL gives the classifier the tokenizer's pad token; an adapter is saved without the configuration that has it.
    trainers_pad = tokenizer.pad_token_id if (folder / ADAPTER_CONFIG).is_file() and has_tokenizer else None
    skip_id = trainers_pad if trainers_pad is not None else _config_pad_id(config)
    policy = _policy(tokenizer, network, contract, rule, skip_id, options.template_date)
    pad_id = _pad_id(config, tokenizer, policy)
    files = [*weights.weight_files(base), *adapter_files(folder)]
    facts = ObservedFacts(
        template_digest=template_digest(policy.template),
        bos_id=policy.bos_id,
        end_text=policy.end_text,
        end_ids=policy.end_ids,
        pad_id=pad_id,
        tokenizer_digest=tokenizer_digest(tokenizer),
        weights_digest=weights.digest(files, without=head.tensors),
        head_digest=weights.tensor_digest(network.combined_head()[0]),
        dtype=chosen,
        template_date=policy.template_date,
    )
    fitted = Calibration.load(folder)
    reference = hidden_reference.load(folder, fitted, width)
    left_out = [*weights.unread_files(base), *unread_adapter_files(folder)]
    notes += tuple(f"{path} is left out: the safetensors file beside it is read" for path in left_out)
    notes += (*head.notes, *_template_notes(folder if has_tokenizer else base))
    calibration = fitted or _config_calibration(config)
    return Checkpoint(
        network, tokenizer, policy, pad_id, form, folder, calibration, contract, facts, reference, notes, head.left_out
    )


def load_weights(unloaded: Checkpoint, *, device: str = "cpu") -> Checkpoint:
    """Load the backbone of a checkpoint from `read_without_weights` onto a device. Raise `CheckpointError`."""
    folder, known = unloaded.folder, unloaded.network
    if unloaded.facts is None:
        raise CheckpointError(f"{folder} is still in training: its weights are not final")
    base = _base_of(folder)
    kind = type(known.backbone) if device == "cpu" and weights.are_safe(weights.weight_files(base)) else None
    is_whole = layers_of_heads(folder) is None
    backbone = _load_backbone(base, _config_of(folder, base), unloaded.facts.dtype, whole=is_whole, unmapped=kind).to(
        device
    )
    if (folder / ADAPTER_CONFIG).is_file():
        grow_embeddings(backbone, folder)
        backbone = merge_backbone(backbone, folder)
    heads = known.heads.weight.detach()
    network = RewardNetwork(backbone, heads, known.head_names, known.head_weights, known.bias_H).to(device).eval()
    if device == "cpu":
        _copy_out_of_files(network)
    _refuse_look_ahead(network, unloaded)
    reference = unloaded.hidden.to(device) if unloaded.hidden is not None else None
    return replace(unloaded, network=network, hidden=reference)


def _copy_out_of_files(network: RewardNetwork) -> None:
    """Copy every tensor into private memory. transformers leaves tensors of the stored dtype as views of mapped files.

    A mapped file that a trainer overwrites would change the scores of the served model, and one that it truncates would kill
    the process (SIGBUS). One tensor at a time, each in pages that return to the kernel when an engine frees it.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.data.is_contiguous():
            copy = weights.allocate_pages(tensor.data.nbytes).view(tensor.dtype).view(tensor.shape)
        else:
            copy = torch.empty_like(tensor.data)
        tensor.data = copy.copy_(tensor.data)


def _refuse_look_ahead(network: RewardNetwork, unloaded: Checkpoint) -> None:
    """Raise `CheckpointError` where the model attends to tokens after the scored one and the encoder drops some of those."""
    policy = unloaded.policy
    if policy.drops_read_ids and looks_ahead(network):
        raise CheckpointError(
            f"{unloaded.folder}: {unloaded.architecture} is not causal: tokens after the one whose score is read change the score, "
            f"and rows end there because id {policy.skip_id} is the pad token and may end a row as well. If it was trained so, set "
            "pad_token_id in config.json to a token that no row has; else serve the model with transformers."
        )


def read_backbone(
    path_or_name: str,
    options: ReadOptions = READ_DEFAULTS,
    *,
    head_names: Sequence[str] = SINGLE_HEAD,
    head_weights: Sequence[float] | None = None,
    n_layers: int | None = None,
) -> Checkpoint:
    """Read a language model (an SFT model, for example) and add untrained heads, for training only.

    `n_layers`: number of decoder layers to keep, from the first. Raise `CheckpointError`.
    """
    folder = resolve(path_or_name, allow_pickle=options.allow_pickle)
    check_files(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{folder} has an {ADAPTER_CONFIG}: merge the adapter first, training begins with a whole model"
        )
    weights.refuse_pickles(weights.weight_files(folder), allowed=options.allow_pickle)
    weights.refuse_duplicates(weights.weight_files(folder))
    refuse_remote_code([folder], ignored=options.ignore_checkpoint_code, has_contract=False)
    config = read_config(folder)
    if n_layers is not None:
        _keep_layers(config, n_layers)
    backbone = _load_backbone(folder, config, _choose_dtype(options.dtype, config, None), whole=n_layers is None)
    tokenizer = read_tokenizer(folder)
    network = RewardNetwork.create(backbone, head_names, head_weights)
    policy = _policy(tokenizer, network, None, LAYOUT_RULES["language_model"], None, None)
    return Checkpoint(network, tokenizer, policy, _pad_id(config, tokenizer, policy), "language_model", folder)


def resolve(path_or_name: str, *, allow_pickle: bool = False) -> Path:
    """Return the folder of a path, a packaged base or a hub name. Raise `CheckpointError` where there is none.

    From the hub no code is downloaded, and pickles only where they are allowed.
    """
    family, _, variant = path_or_name.partition(":")
    if family in PACKAGED_BASES:
        return PACKAGED_BASES[family](variant)
    path = Path(path_or_name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or path_or_name.startswith((".", "~")) or path_or_name.count("/") != 1:
        searched = "" if path.is_absolute() else f" (searched in {Path.cwd()})"
        raise CheckpointError(
            f"{path_or_name!r} is not a folder{searched}{packaged_base_like(path_or_name)} Name a folder that holds a model, or "
            "a model of the Hugging Face hub (OWNER/NAME)."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path_or_name, allow_patterns=[*_HUB_PATTERNS, *(_PICKLES * allow_pickle)]))
    except Exception as error:  # the hub's errors have no common base: network, names, permissions
        raise CheckpointError(
            f"{path_or_name!r} is no folder, and its download from the Hugging Face hub failed: {error}"
        ) from error


def read_config(folder: Path) -> Any:
    """The configuration of a model. Raise `CheckpointError`."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} has no config.json: it is not a model. Name a folder with config.json and weights, or a model of the hub."
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a foreign config.json may raise anything
        _refuse_code(error, folder)
        if '"model_type"' not in (folder / "config.json").read_text(encoding="utf-8", errors="replace"):
            raise CheckpointError(
                f"{folder}/config.json has no model_type: it does not say what the model is. Copy the config.json of the model."
            ) from error
        raise CheckpointError(f"{folder}/config.json is unreadable: {_reason(error)}") from error
    named = getattr(config, "transformers_weights", None)
    if named is not None:
        raise CheckpointError(
            f"{folder}/config.json has transformers_weights={named!r}, which only transformers reads: other engines would load "
            "other weights. Rename the file to model.safetensors, and delete the field."
        )
    return config


def _reason(error: Exception) -> str:
    """What a library's error says, which for a `KeyError` is only the name of the key."""
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) and error.args else str(error)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model. Raise `CheckpointError` unless it is a fast one."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        _refuse_code(error, folder)
        if not (folder / "tokenizer.json").is_file():
            # transformers then asks for packages that convert other files, whether there are any or not.
            raise CheckpointError(
                f"{folder} has no tokenizer.json, and no other file there gives a tokenizer. Copy the tokenizer of training into "
                "it."
            ) from error
        raise CheckpointError(f"{folder} has no tokenizer that loads: {_reason(error)}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"{folder}: a fast tokenizer (tokenizer.json) is needed")
    if tokenizer.split_special_tokens:
        raise CheckpointError(
            f"{folder}/tokenizer_config.json has split_special_tokens: the control tokens of a rendering would be tokenised as "
            "plain text, and no row could end with one. If training tokenised them whole, set it to false; else train again with "
            "false."
        )
    return tokenizer


def _has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer. Raise `CheckpointError` where it has only a part of one."""
    if (folder / "tokenizer.json").is_file():
        return True
    if (folder / "config.json").is_file() and weights.weight_files(folder):
        return False  # a whole model: its tokenizer is read from this folder in any form
    templates = folder / "additional_chat_templates"
    halves = [path for path in (folder / "tokenizer_config.json", templates) if path.exists()]
    if halves:
        raise CheckpointError(
            f"{halves[0]} exists without tokenizer.json: the tokenizer of the base model may differ from that of training. Save "
            "the tokenizer of training into the folder, or delete the remaining files of it."
        )
    return False


def _template_notes(folder: Path) -> tuple[str, ...]:
    """Note where tokenizer_config.json has another chat template than the file that transformers prefers."""
    path, config = folder / CHAT_TEMPLATE, folder / "tokenizer_config.json"
    if not (path.is_file() and config.is_file()):
        return ()
    inside = json.loads(config.read_bytes()).get("chat_template")
    if isinstance(inside, list):
        inside = {each.get("name"): each.get("template") for each in inside if isinstance(each, dict)}
    if isinstance(inside, dict):
        inside = inside.get("default")
    if inside is None or inside == path.read_text(encoding="utf-8"):
        return ()
    return (
        f"the chat template of {config} is left out, because transformers prefers {path}, which differs: a trainer with an older "
        "transformers, which does not read that file, has used the former",
    )


def _refuse_code(error: Exception, folder: Path) -> None:
    """Raise `CheckpointError` where transformers requires permission to run custom code of the checkpoint."""
    if "trust_remote_code" in str(error):
        raise CheckpointError(
            f"{folder} needs custom code (auto_map), which is never run here. Serve a model whose architecture and tokenizer are "
            "part of transformers."
        ) from error


def source_digests(checkpoint: Checkpoint, *, weights_too: bool) -> dict[str, str]:
    """Digests of the sources of a checkpoint: config.json, tokenizer, chat template and, with `weights_too`, the weights.

    The weights are read once more.
    """
    folder = checkpoint.folder
    base = _base_of(folder, allow_pickle=True)
    found = {
        "config.json": _config_digest(base / "config.json", folder / ADAPTER_CONFIG),
        "tokenizer": tokenizer_digest(checkpoint.tokenizer),
        "chat template": template_digest(checkpoint.policy.template),
    }
    if weights_too:
        found["weights"] = weights.digest([*weights.weight_files(base), *adapter_files(folder)])
    return found


def _config_digest(*paths: Path) -> str:
    """Digest of the values in JSON files, without the path and the version that saved them."""
    whole = [json.loads(path.read_bytes()) for path in paths if path.is_file()]
    for config in whole:
        for name in ("_name_or_path", "transformers_version"):
            config.pop(name, None)
    return "sha256:" + hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def has_own_weights(folder: Path) -> bool:
    """Whether the whole model is in this folder: it is neither an adapter nor bare heads."""
    return _base_of(folder) == folder


def _base_of(folder: Path, *, allow_pickle: bool = False) -> Path:
    """The folder with the full weights: that of the base model for an adapter or bare heads, else this one."""
    if (folder / ADAPTER_CONFIG).is_file():
        name = json.loads((folder / ADAPTER_CONFIG).read_text()).get("base_model_name_or_path")
        if not name:
            raise CheckpointError(f"{folder}/{ADAPTER_CONFIG} names no base_model_name_or_path")
        refuse_shared_layers(folder)
        base = _resolve_base(folder / ADAPTER_CONFIG, name, allow_pickle=allow_pickle)
        own = weights.weight_files(folder)
        if own:
            raise CheckpointError(
                f"{folder} has a whole model ({own[0].name}) and an adapter over {name} "
                f"({', '.join(path.name for path in adapter_files(folder)) or ADAPTER_CONFIG}). Which of them was trained is not "
                "known: delete the other one, with its configuration."
            )
        if (base / ADAPTER_CONFIG).is_file():
            raise CheckpointError(f"{base} has an {ADAPTER_CONFIG} too: merge it into its base model first")
        return base
    name = base_of_heads(folder)
    return _resolve_base(folder / HEADS_FILE, name, allow_pickle=allow_pickle) if name else folder


def _config_of(folder: Path, base: Path) -> Any:
    """The configuration of the base model, with as many layers as bare heads in the folder are over."""
    config = read_config(base)
    n_layers = layers_of_heads(folder)
    if n_layers is not None:
        _keep_layers(config, n_layers)
    return config


def _resolve_base(file: Path, name: str, *, allow_pickle: bool) -> Path:
    """The folder of the base model that a file names. Raise `CheckpointError`."""
    try:
        return resolve(name, allow_pickle=allow_pickle)
    except CheckpointError as error:
        raise CheckpointError(f"{file} names a base model: {error}") from error


def _load_backbone(
    folder: Path, config: Any, dtype: str, *, whole: bool = True, unmapped: type[Any] | None = None
) -> Any:
    """Load the decoder with every tensor from the files; `whole=False`: the files may hold more layers than the configuration.

    `unmapped`: the class of a decoder whose files are read and not mapped, so that a file truncated meanwhile is an error.
    """
    from transformers import AutoModel

    kind: type[Any] = AutoModel
    source: Path | None = folder
    given: dict[str, Any] = {}
    if unmapped is not None:
        kind, source, given = unmapped, None, {"state_dict": weights.read_all(weights.weight_files(folder))}
    try:
        with quiet_transformers():
            backbone, info = kind.from_pretrained(
                source,
                config=config,
                trust_remote_code=False,
                **given,
                # Pickles are allowed here: `refuse_pickles` has run before.
                use_safetensors=True if weights.are_safe(weights.weight_files(folder)) else None,
                weights_only=True,
                dtype=_torch_dtype(dtype),
                attn_implementation=attention_for(config),
                output_loading_info=True,
            )
    except Exception as error:
        _refuse_code(error, folder)
        raise CheckpointError(f"the weights in {folder} do not load: {error}") from error
    broken = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if broken:
        raise CheckpointError(
            f"{folder}: {len(broken)} tensors of the backbone are missing or have another shape ({broken[0]}, ...). They would "
            "be random: the checkpoint is incomplete or its config.json is of another model."
        )
    # Heads are outside the children of the backbone; a layer too many is inside.
    children = {name for name, _ in backbone.named_children()}
    lost = sorted(k for k in info["unexpected_keys"] if children.intersection(k.split(".")[:2]))
    shapes = weights.shapes(weights.weight_files(folder), filter(_MASK.search, lost))
    buffers = _unsaved_buffers(backbone)
    lost = [n for n in lost if not (_is_mask(shapes.get(n)) or buffers.intersection((n, n.partition(".")[2])))]
    if lost and whole:
        raise CheckpointError(f"{folder}: {len(lost)} tensors have no place in this architecture ({lost[0]}, ...)")
    return backbone


_MASK = re.compile(r"\.(attn|attention|self_attn)\.(bias|masked_bias|causal_mask)$")
"""Constants that earlier versions of transformers saved with GPT-2, GPT-J, GPT-Neo and CodeGen; later versions do not."""


def _unsaved_buffers(backbone: Any) -> set[str]:
    """Buffers that the class computes; an earlier version may have saved them (XGLM's positions, for example)."""
    return {name for name, _ in backbone.named_buffers()} - set(backbone.state_dict())


def _is_mask(shape: tuple[int, ...] | None) -> bool:
    """Whether this is the shape of a causal mask `(1, 1, T, T)` or of its fill value: no parameter has one of these."""
    if shape is None:
        return False
    return shape in ((), (1,)) or (len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3])


def _outline_backbone(folder: Path, config: Any, dtype: str) -> Any:
    """Create the decoder on the meta device, without weights."""
    from transformers import AutoModel

    chosen = _torch_dtype(dtype)
    try:
        with torch.device("meta"), quiet_transformers():
            return AutoModel.from_config(
                config, trust_remote_code=False, dtype=chosen, attn_implementation=attention_for(config)
            )
    except Exception as error:
        _refuse_code(error, folder)
        raise CheckpointError(f"no model can be created from {folder}/config.json: {error}") from error


def _torch_dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise CheckpointError(f"unknown dtype {name!r}; known are {', '.join(DTYPES)}{did_you_mean(name, DTYPES)}")
    return DTYPES[name]


def _choose_dtype(asked: str, config: Any, contract: ScoringContract | None) -> str:
    if asked != "auto":
        return asked
    if contract is not None:
        return contract.dtype
    stored = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return stored if stored in DTYPES else "float32"


def _rule_of(layout: str, options: ReadOptions) -> LayoutRule:
    """The rule of the layout's trainer, with the operator's changes."""
    rule = LAYOUT_RULES[layout]
    if options.ending is None and options.reads_at is None:
        return rule
    return replace(
        rule,
        ending=options.ending or rule.ending,
        reads_at=options.reads_at or rule.reads_at,
        reason="the operator has set it",
    )


def _policy(
    tokenizer: Any,
    network: RewardNetwork,
    contract: ScoringContract | None,
    rule: LayoutRule,
    skip_id: int | None,
    template_date: str | None,
) -> EncodingPolicy:
    """Infer the policy of the tokenizer under a rule; a contract also has the skipped id, the date and the longest row."""
    vocab_size = network.backbone.get_input_embeddings().num_embeddings
    max_tokens = max_row_tokens(network.backbone) or DEFAULT_MAX_TOKENS
    if contract is None:
        return infer_policy(
            tokenizer,
            max_tokens=max_tokens,
            vocab_size=vocab_size,
            rule=rule,
            pad_id=skip_id,
            template_date=template_date,
        )
    return infer_policy(
        tokenizer,
        max_tokens=min(contract.max_tokens, position_table_size(network.backbone) or contract.max_tokens),
        vocab_size=vocab_size,
        rule=rule,
        pad_id=contract.skip_id,
        truncation=contract.truncation,
        template_date=contract.template_date,
    )


def _config_pad_id(config: Any) -> int | None:
    """`pad_token_id` of the configuration; recurrent models have configurations without the field."""
    return getattr(config.get_text_config(), "pad_token_id", None)


def _pad_id(config: Any, tokenizer: Any, policy: EncodingPolicy) -> int:
    """The pad token of the checkpoint. Rows are masked, so any id gives the same scores here; other engines search for it.

    It has an embedding, even where the tokenizer's pad token has none.
    """
    for known in (_config_pad_id(config), tokenizer.pad_token_id, tokenizer.eos_token_id):
        if known is not None and 0 <= int(known) < policy.vocab_size:
            return int(known)
    return policy.end_ids[-1] if policy.end_ids else 0


def _config_calibration(config: Any) -> Calibration | None:
    """Calibration from OpenRLHF's `mean` and `std`; 0 and 1 are its defaults, which mean that nothing was fitted."""
    mean, std = getattr(config, "mean", None), getattr(config, "std", None)
    if mean is None or std is None or (mean == 0 and std == 1):
        return None
    return Calibration(mean=float(mean), std=float(std), source="config.json (mean, std)")


def _keep_layers(config: Any, n_layers: int) -> None:
    text = config.get_text_config()
    if not 0 < n_layers <= text.num_hidden_layers:
        raise CheckpointError(f"n_layers={n_layers}: the model has {text.num_hidden_layers} layers")
    text.num_hidden_layers = n_layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:n_layers]
