"""What an operator can set, by `REWARD_*` environment or by flag, and what makes no sense together.

Only `app` and the entry points see these classes: every other module is passed its numbers. Flags are the lower-case
tails of the variables, with hyphens: `REWARD_BATCHING__MAX_TOKENS` is `--batching.max-tokens`.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict, SettingsError

from rewardserve.model.backends import BACKENDS, ModelSpec, VllmSpec
from rewardserve.model.reward import CombineSettings, PenaltySettings, RewardSettings
from rewardserve.model.text.text_files import decode_text
from rewardserve.service.auth.api_keys import ApiKeys, ApiKeysError
from rewardserve.service.auth.api_keys import read_api_keys as read_keys
from rewardserve.service.auth.tls import TlsError, TlsFiles, create_ssl_context
from rewardserve.service.storage.files import error_reason, read_bounded
from rewardserve.service.tripwires.config import WireConfig, WireConfigError, parse_wire_config
from rewardserve.service.tripwires.honeypots import Honeypots, HoneypotsError
from rewardserve.service.tripwires.honeypots import read as read_honeypots

ENV_PREFIX = "REWARD_"
_MAX_BYTES = 64 * 2**20
_MAX_SECRET_BYTES = 4_096


class Batching(BaseModel):
    """How rows share a batch."""

    model_config = ConfigDict(extra="forbid")

    max_tokens: int | None = Field(
        None,
        gt=0,
        description="token budget of a batch; a longer row has a batch of its own. Default: follows what forwards take",
    )
    linger_ms: float = Field(
        2.0, ge=0.0, le=10_000.0, description="longest wait of a row for rows that are being encoded"
    )


class Cache(BaseModel):
    """What is remembered of rows that were scored."""

    model_config = ConfigDict(extra="forbid")

    scores: int = Field(65_536, ge=0, description="rows whose exact repeat needs no forward, half a kB each; 0: none")
    prefix_mib: int = Field(256, ge=0, description="keys and values of common beginnings, carried to the next batches")


class Vllm(BaseModel):
    """What is asked of vLLM's engine, where the backend is vllm."""

    model_config = ConfigDict(extra="forbid")

    tensor_parallel: int = Field(1, gt=0, description="GPUs that each layer is spread over")
    pipeline_parallel: int = Field(1, gt=0, description="stages of layers, each on GPUs of its own")
    gpu_memory_utilization: float | None = Field(
        None, gt=0.0, le=1.0, description="share of a GPU's memory for one model; default: vLLM's"
    )
    max_num_seqs: int | None = Field(None, gt=0, description="rows in one forward; default: vLLM's")
    enforce_eager: bool = Field(False, description="nothing is compiled or captured: starts sooner, scores more slowly")
    stall_timeout_s: float = Field(
        300.0, gt=0.0, description="rows wait and none has come back for so long: the engine counts as dead"
    )


class Combine(BaseModel):
    """How the scores of several models or heads become one reward."""

    model_config = ConfigDict(extra="forbid")

    method: Literal["sum", "mean", "min", "softmin", "and"] | None = Field(
        None, description="default: the weighted sum of a model's heads, the mean of several models"
    )
    beta: float = Field(0.5, ge=0.0, description="of softmin; 0: min, inf: the mean")
    weights: dict[str, float] = Field({}, description="JSON, by head or model; default: those of the checkpoint")


class Penalties(BaseModel):
    """What is taken off a reward, in its own units; 0: nothing."""

    model_config = ConfigDict(extra="forbid")

    missing_end: float = Field(0.0, ge=0.0, allow_inf_nan=False, description="where the policy was cut off")
    overlong: float = Field(0.0, ge=0.0, allow_inf_nan=False, description="reached at overlong_end")
    overlong_start: int | None = Field(None, ge=0, description="tokens of the response from which it grows")
    overlong_end: int | None = Field(None, gt=0, description="tokens of the response at which it is whole")
    repetition: float = Field(0.0, ge=0.0, allow_inf_nan=False, description="where every trigram is a repeated one")
    repetition_above: float | None = Field(
        None, ge=0.0, lt=1.0, description="share of repeated trigrams that is usual; default: the calibration's"
    )


class Tripwires(BaseModel):
    """How runs are watched."""

    model_config = ConfigDict(extra="forbid")

    cpu_share: float = Field(
        0.02, ge=0.0, le=1.0, description="share of a core for looking at samples; 0: nothing is watched, 1: everything"
    )
    window: int = Field(128, ge=16, description="samples from one look at a run to the next")
    run_ends_s: float = Field(
        1800.0,
        gt=0.0,
        description="a run without samples for so long has ended: its alerts resolve; longer than a step",
    )
    config_file: Path | None = Field(
        None, description="TOML: thresholds, severities, phrases; default: the shipped ones"
    )
    canaries_file: Path | None = Field(None, description="JSON: your own pairs of an honest answer and an exploit")
    canaries_every_s: float = Field(600.0, gt=0.0, description="how often the canaries are scored again")
    baseline: Literal["run", "calibration"] = Field(
        "run", description="baseline of a run: its first samples, or the responses of the calibration"
    )
    honeypots_file: Path | None = Field(None, description="planted prompts, hashed by rewardserve honeypots")
    honeypots_key_file: Path | None = Field(None, description="the key that they were hashed with, 16 to 64 bytes")
    evidence_dir: Path | None = Field(
        None, description="folder for the texts behind an alert; empty: no conversation is ever written down"
    )

    state_dir: Path | None = Field(
        None,
        description="folder for state that outlives a restart: baselines of runs, the queue of the webhook; one a replica",
    )

    @field_validator(
        "config_file",
        "canaries_file",
        "honeypots_file",
        "honeypots_key_file",
        "evidence_dir",
        "state_dir",
        mode="before",
    )
    @classmethod
    def _none_if_empty(cls, value: Any) -> Any:
        return None if value == "" else value

    audit_share: float = Field(
        0.1, gt=0.0, le=1.0, description="share of the samples that the audit model is asked about"
    )


class AdmissionSettings(BaseModel):
    """How much may be in flight at one time."""

    model_config = ConfigDict(extra="forbid")

    max_samples: int = Field(4096, gt=0, description="samples in flight, over all requests")
    max_tokens: int = Field(1_048_576, gt=0, description="tokens in flight, estimated from the characters")


class Swap(BaseModel):
    """How one model follows another while the server runs."""

    model_config = ConfigDict(extra="forbid")

    keep: int = Field(
        1, ge=0, description="models that left service and stay in memory, so that a rollback is immediate"
    )
    load_timeout_s: float = Field(
        1800.0,
        ge=0.0,
        allow_inf_nan=False,
        description="a load that takes longer is given up, and others can begin; 0: never",
    )
    watch_s: float = Field(
        0.0,
        ge=0.0,
        description="look so often whether `model` leads to another checkpoint, and load that; 0: on SIGHUP only",
    )


class ModelSettings(BaseSettings):
    """Which model, how it runs, and what is done to its scores: shared by all that scores."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        extra="forbid",
    )

    model: str = Field("", description="checkpoint folder or hub name; empty: the embedded default")
    ensemble: str = Field("", description="several at once, `name=model,name=model`; see combine")
    backend: str = Field("torch", description=f"one of {', '.join(BACKENDS)}")
    engine: Literal["auto", "packed", "padded"] = Field("auto", description="how the torch backend lays out a batch")
    deterministic: bool = Field(False, description="a score has the same bits whatever else is in its batch; slower")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="of the network's weights")
    matmul_precision: Literal["high", "highest"] = Field(
        "high", description="float32 on a CPU with AMX; high: three products of bfloat16 for one, off by some 1e-5"
    )
    contract_mode: Literal["strict", "warn"] = Field(
        "strict", description="warn: serve although the contract is broken"
    )
    allow_pickle: bool = Field(False, description="read weights that are no safetensors; only from whom you trust")
    ignore_checkpoint_code: bool = Field(
        False, description="read a checkpoint that names code of its own (auto_map) without it; never is it run"
    )
    template_date: str | None = Field(
        None,
        pattern=r"^\d{4}-\d{2}-\d{2}$",
        description="YYYY-MM-DD: given to a chat template that asks for the date, where no contract has one; default: 2024-07-26",
    )
    ending: Literal["template", "template_or_eos", "template_and_eos", "end_token", "eos"] | None = Field(
        None, description="how a row ends, where no contract says it; default: as the trainer of the layout ends it"
    )
    reads_at: Literal["last", "last_non_pad"] | None = Field(
        None,
        description="token of a row at which the score is read, where no contract says it; default: as that trainer",
    )
    normalize: bool | None = Field(None, description="on or off; default: on where statistics exist")
    combine: Combine = Combine()
    length_debias: float = Field(
        0.0, ge=0.0, le=1.0, description="share of what length alone is worth that is taken out"
    )
    penalties: Penalties = Penalties()
    shape: Literal["none", "cap", "softcap", "par", "lsc"] | None = Field(
        None, description="default: softcap where caps exist"
    )
    slope: float = Field(1.0, gt=0.0, allow_inf_nan=False, description="k of par and lsc, in log odds")
    cap_low: float | None = Field(None, allow_inf_nan=False, description="in units of the value that the cap sees")
    cap_high: float | None = Field(None, allow_inf_nan=False, description="in units of the value that the cap sees")
    max_input_tokens: int | None = Field(None, gt=0, description="longest sample; default: what the model reads")
    truncation: Literal["prompt_left", "error"] | None = Field(None, description="default: as the contract says")
    batching: Batching = Batching()
    tripwires: Tripwires = Tripwires()
    audit_model: str = Field(
        "", description="a second model that judges a share of the samples, for the trip wires only"
    )
    cache: Cache = Cache()
    vllm: Vllm = Vllm()
    encoder_threads: int = Field(min(4, os.cpu_count() or 1), gt=0, le=64, description="threads that tokenise")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the least severe events that are logged"
    )
    log_format: Literal["json", "text"] = Field("text", description="one event a line, as text or as JSON")

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        """Raise ValueError in words, with the remedy."""
        if self.backend not in BACKENDS:
            raise ValueError(f"backend={self.backend} is unknown. Set REWARD_BACKEND to one of {', '.join(BACKENDS)}.")
        if self.ensemble and self.model:
            raise ValueError("model and ensemble are both set. Set REWARD_MODEL or REWARD_ENSEMBLE.")
        self.named_models()
        longest, budget = self.max_input_tokens, self.batching.max_tokens
        if longest is not None and budget is not None and longest > budget:
            raise ValueError(
                f"max_input_tokens={longest} exceeds batching.max_tokens={budget}: such a row would never fit the "
                f"budget. Raise REWARD_BATCHING__MAX_TOKENS or lower REWARD_MAX_INPUT_TOKENS."
            )
        if self.cap_low is not None and self.cap_high is not None and self.cap_low >= self.cap_high:
            raise ValueError(
                f"cap_low={self.cap_low} is not below cap_high={self.cap_high}. Mend REWARD_CAP_LOW or REWARD_CAP_HIGH."
            )
        if self.shape in ("none", "par", "lsc") and (self.cap_low is not None or self.cap_high is not None):
            raise ValueError(
                f"shape={self.shape}, but a cap is set. Drop REWARD_CAP_LOW and REWARD_CAP_HIGH, or set REWARD_SHAPE."
            )
        return self

    def named_models(self) -> dict[str, str]:
        """`ensemble` by name; empty where there is one model. Raise ValueError in words."""
        pairs = [pair.partition("=") for pair in self.ensemble.split(",") if pair.strip()]
        named = {name.strip(): model.strip() for name, _, model in pairs}
        if self.ensemble and (len(named) != len(pairs) or len(named) < 2 or not all(named) or not all(named.values())):
            raise ValueError(
                f"ensemble={self.ensemble} is not a list of two or more `name=model`, with names that differ."
            )
        return named

    def model_spec(self, model: str | None = None) -> ModelSpec:
        """What `rewardserve.model.backends.load` is asked for; of another model than that of the setting, if named."""
        return ModelSpec(
            model=self.model if model is None else model,
            device=self.device,
            dtype=self.dtype,
            engine=self.engine,
            matmul_precision=self.matmul_precision,
            deterministic=self.deterministic,
            prefix_cache_bytes=self.cache.prefix_mib * 2**20,
            contract_mode=self.contract_mode,
            max_input_tokens=self.max_input_tokens,
            truncation=self.truncation,
            allow_pickle=self.allow_pickle,
            ignore_checkpoint_code=self.ignore_checkpoint_code,
            template_date=self.template_date,
            ending=self.ending,
            reads_at=self.reads_at,
            vllm=VllmSpec(**dict(self.vllm)),
        )

    def wire_config(self) -> WireConfig:
        """What `tripwires.config_file` says. Raise `SettingsError`. Files with phrases are found beside it."""
        path = self.tripwires.config_file
        if path is None:
            return WireConfig()
        try:
            config = parse_wire_config(tomllib.loads(decode_text(read_bounded(path, _MAX_BYTES))))
        except (OSError, ValueError, WireConfigError) as error:
            why = str(error) if isinstance(error, WireConfigError) else error_reason(error)
            raise SettingsError(f"REWARD_TRIPWIRES__CONFIG_FILE={path}: {why}.") from None
        return replace(config, lexicons=tuple(str(path.parent / name) for name in config.lexicons))

    def read_honeypots(self) -> Honeypots | None:
        """The honeypots, if there are any. Raise `SettingsError`."""
        path, key_path = self.tripwires.honeypots_file, self.tripwires.honeypots_key_file
        if path is None:
            return None
        if key_path is None:
            raise SettingsError(
                "REWARD_TRIPWIRES__HONEYPOTS_FILE is set, but not the key: set REWARD_TRIPWIRES__HONEYPOTS_KEY_FILE."
            )
        try:
            texts = decode_text(read_bounded(path, _MAX_BYTES)).split("\n")
            return read_honeypots(texts, read_bounded(key_path, _MAX_BYTES).strip())
        except (OSError, ValueError) as error:
            raise SettingsError(f"REWARD_TRIPWIRES__HONEYPOTS_FILE cannot be read: {error_reason(error)}.") from None
        except HoneypotsError as error:
            raise SettingsError(f"REWARD_TRIPWIRES__HONEYPOTS_FILE={path}: {error}.") from None

    def make_folders(self) -> None:
        """Those of the trip wires. Raise `SettingsError` where nothing can be written into one."""
        for name in ("evidence_dir", "state_dir"):
            folder, variable = getattr(self.tripwires, name), f"{ENV_PREFIX}TRIPWIRES__{name.upper()}"
            if folder is None:
                continue
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                raise SettingsError(f"{variable}={folder}: {error.strerror}.") from None
            if not os.access(folder, os.W_OK | os.X_OK):
                raise SettingsError(f"{variable}={folder} cannot be written to.")

    def reward_settings(self) -> RewardSettings:
        """What `build_pipeline` is asked for."""
        return RewardSettings(
            normalize=self.normalize,
            combine=CombineSettings(**dict(self.combine)),
            length_debias=self.length_debias,
            penalties=PenaltySettings(**dict(self.penalties)),
            shape=self.shape,
            cap_low=self.cap_low,
            cap_high=self.cap_high,
            slope=self.slope,
        )


class ServeSettings(ModelSettings):
    """Serve a reward model over HTTP."""

    model: CliPositionalArg[str] = Field("", description="checkpoint folder or hub name; empty: the embedded default")
    host: str = Field("127.0.0.1", description="bind address")
    port: int = Field(8000, ge=0, le=65_535, description="bind port; 0: a free one")
    shared_port: int | None = Field(
        None, ge=1, le=65_535, description="listen here too once there is a model; replicas of one machine may share it"
    )
    admission: AdmissionSettings = AdmissionSettings()
    swap: Swap = Swap()
    model_aliases: str = Field(
        "",
        description="names, with commas between, accepted as `model` beside the served one; others are refused with 404",
    )
    verify_on_failure: Literal["mask", "refuse"] = Field(
        "mask",
        description="of POST /verify (NeMo-Gym), where an episode has no score: a masked reply, or an error status",
    )
    overload_status: Literal[503, 429] = Field(503, description="what an overloaded server answers")
    max_samples_per_request: int = Field(1024, gt=0, description="more than these are refused with 422")
    max_body_bytes: int = Field(64 * 2**20, gt=0, description="larger bodies are refused with 413")
    max_body_bytes_in_flight: int = Field(256 * 2**20, gt=0, description="of all requests; beyond: overloaded")
    body_timeout_s: float = Field(30.0, gt=0, description="longest wait for a whole body; beyond: 408")
    head_timeout_s: float = Field(10.0, gt=0, description="longest wait for the head of a request; beyond: 408")
    keep_alive_s: float = Field(
        75.0,
        gt=0,
        description="how long a connection may be idle between two requests; above the idle timeout of a proxy",
    )
    max_connections: int | None = Field(
        None, gt=0, description="beyond, the longest silent one is evicted; default: what file descriptors allow, 8192"
    )
    webhook_url: str = Field("", description="receiver of alerts: JSON by POST")
    webhook_secret_file: Path | None = Field(
        None, description="whsec_... of Standard Webhooks, a line each; every one signs; empty: alerts are not signed"
    )
    keys_file: Path | None = Field(None, description="API keys, see rewardserve keys; empty: open, on loopback only")
    metrics_key_required: bool = Field(False, description="/metrics needs a key with the scope metrics")
    allow_unauthenticated: bool = Field(False, description="serve without keys on other addresses than loopback")
    allowed_hosts: str = Field(
        "", description="without keys: names by which clients reach this server, with commas; *.NAME: all below; *: any"
    )
    allowed_origins: str = Field("", description="without keys: origins of pages that may ask, with commas; *: any")
    scorer_timeout_s: float = Field(
        60.0, ge=0.0, allow_inf_nan=False, description="longest forward; beyond, requests are refused; 0: any"
    )
    tls_cert_file: Path | None = Field(None, description="certificate chain in PEM; empty: no TLS")
    tls_key_file: Path | None = Field(None, description="its key in PEM, without a password")
    tls_client_ca_file: Path | None = Field(
        None, description="require client certificates signed by this CA (mTLS), in PEM"
    )
    drain_timeout_s: float = Field(60.0, gt=0, description="longest wait for accepted work at shutdown")

    @model_validator(mode="before")
    @classmethod
    def _numbers_from_text(cls, values: Any) -> Any:
        """The environment has text only, and a Literal of numbers does not convert by itself."""
        if isinstance(values, dict) and str(values.get("overload_status", "")).isdigit():
            values = {**values, "overload_status": int(values["overload_status"])}
        if isinstance(values, dict):
            values = {k: None if v == "" and k.endswith("_file") else v for k, v in values.items()}
        return values

    @model_validator(mode="after")
    def _is_safe_and_can_admit(self) -> Self:
        """Raise ValueError in words, with the remedy."""
        if self.keys_file is None and not self.allow_unauthenticated and not is_loopback(self.host):
            raise ValueError(
                f"host={self.host} is reachable from other machines and there are no keys. Set REWARD_KEYS_FILE, bind "
                f"to 127.0.0.1, or set REWARD_ALLOW_UNAUTHENTICATED=1 if anybody may use this server."
            )
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("a certificate needs its key. Set REWARD_TLS_CERT_FILE and REWARD_TLS_KEY_FILE, or none.")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError(
                "tls_client_ca_file is set, but there is no TLS. Set REWARD_TLS_CERT_FILE and REWARD_TLS_KEY_FILE."
            )
        if self.metrics_key_required and self.keys_file is None:
            raise ValueError(
                "metrics_key_required is set, but there are no keys. Set REWARD_KEYS_FILE, or drop "
                "REWARD_METRICS_KEY_REQUIRED."
            )
        if not _is_http_url(self.webhook_url):
            # It is not repeated: such an address often holds a token.
            raise ValueError("webhook_url is no URL of a host: REWARD_WEBHOOK_URL begins with http:// or https://")
        if self.max_samples_per_request > self.admission.max_samples:
            raise ValueError(
                f"max_samples_per_request={self.max_samples_per_request} exceeds admission.max_samples="
                f"{self.admission.max_samples}: such a request could never be admitted. Raise "
                f"REWARD_ADMISSION__MAX_SAMPLES or lower REWARD_MAX_SAMPLES_PER_REQUEST."
            )
        if self.max_body_bytes > self.max_body_bytes_in_flight:
            raise ValueError(
                f"max_body_bytes={self.max_body_bytes} exceeds max_body_bytes_in_flight={self.max_body_bytes_in_flight}: "
                f"such a body could never be read. Raise REWARD_MAX_BODY_BYTES_IN_FLIGHT or lower REWARD_MAX_BODY_BYTES."
            )
        if self.max_input_tokens is not None and self.max_input_tokens > self.admission.max_tokens:
            raise ValueError(
                f"max_input_tokens={self.max_input_tokens} exceeds admission.max_tokens={self.admission.max_tokens}: "
                f"such a sample could never be admitted. Raise REWARD_ADMISSION__MAX_TOKENS or lower "
                f"REWARD_MAX_INPUT_TOKENS."
            )
        return self

    def aliases(self) -> frozenset[str]:
        """`model_aliases` as a set of names."""
        return frozenset(name.strip() for name in self.model_aliases.split(",") if name.strip())

    def watched_folders(self) -> list[Path]:
        """The folder of each model, where they are to be watched. Raise `SettingsError` for what is none."""
        if not self.swap.watch_s:
            return []
        models = [Path(each) for each in self.named_models().values() or [self.model]]
        if not all(str(model) != "." and model.is_dir() for model in models):
            raise SettingsError(
                f"REWARD_SWAP__WATCH_S={self.swap.watch_s:g}, but the model is no folder that could be watched. Set "
                f"REWARD_MODEL to a folder, or to a link that leads to one, or drop REWARD_SWAP__WATCH_S."
            )
        return models

    def hosts(self) -> list[str]:
        """`allowed_hosts`, each by itself."""
        return _listed(self.allowed_hosts)

    def origins(self) -> list[str]:
        """`allowed_origins`, each by itself."""
        return _listed(self.allowed_origins)

    def read_keys(self) -> ApiKeys:
        """The keys of `keys_file`; none where there is no file. Raise `SettingsError`."""
        if self.keys_file is None:
            return ApiKeys()
        try:
            return read_keys(self.keys_file)
        except ApiKeysError as error:
            raise SettingsError(f"REWARD_KEYS_FILE={self.keys_file}: {error}.") from None

    def tls_files(self) -> TlsFiles | None:
        """The files of the certificate; None: no TLS. Raise `SettingsError` where they are none."""
        if self.tls_cert_file is None or self.tls_key_file is None:
            return None
        files = TlsFiles(self.tls_cert_file, self.tls_key_file, self.tls_client_ca_file)
        try:
            create_ssl_context(files)
        except TlsError as error:
            raise SettingsError(f"REWARD_TLS_CERT_FILE: {error}.") from None
        return files

    def read_webhook_secrets(self) -> tuple[str, ...]:
        """The secrets in `webhook_secret_file`, a line each, as Standard Webhooks writes them. Raise `SettingsError`."""
        path = self.webhook_secret_file
        if path is None:
            return ()
        try:
            secrets = tuple(decode_text(read_bounded(path, _MAX_SECRET_BYTES)).split())
        except (OSError, ValueError) as error:
            raise SettingsError(f"REWARD_WEBHOOK_SECRET_FILE={path} cannot be read: {error_reason(error)}.") from None
        if not secrets or not all(_is_webhook_secret(each) for each in secrets):
            raise SettingsError(
                f"REWARD_WEBHOOK_SECRET_FILE={path}: a line is whsec_ and 24 to 64 random bytes in base64. Make one: "
                'echo "whsec_$(openssl rand -base64 32)"'
            )
        return secrets


class ScoreSettings(ModelSettings):
    """Score a file of samples: one result a line, in the same order."""

    input: CliPositionalArg[Path] = Field(
        description="samples, one JSON object a line, as in POST /score; a file (it is read twice), in UTF-8. Whole lines may be "
        "appended between two runs"
    )
    output: CliPositionalArg[Path] = Field(
        description="results, one a line, in the same order; continued if it exists, where the lines of INPUT that it has results "
        "of are unchanged (by digest), and model and settings are the same"
    )


def _is_http_url(text: str) -> bool:
    """Whether requests can be sent to this address; an empty one means that none are."""
    try:
        url = urlsplit(text)
        return not text or (
            url.scheme in ("http", "https")
            and bool(url.hostname)
            and url.port != 0
            and text.isprintable()
            and " " not in text
        )
    except ValueError:  # brackets that are not closed, a port that is none
        return False


def _is_webhook_secret(text: str) -> bool:
    prefix, _, encoded = text.partition("_")
    try:
        return prefix == "whsec" and 24 <= len(base64.b64decode(encoded, validate=True)) <= 64
    except ValueError:
        return False


def _listed(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def unknown_variables(settings: type[BaseSettings], environment: Mapping[str, str]) -> list[str]:
    """`REWARD_*` variables that no setting reads: usually misspelt."""
    known = {(ENV_PREFIX + name).upper() for name in settings.model_fields}
    return sorted(v for v in environment if v.startswith(ENV_PREFIX) and v.partition("__")[0] not in known)
