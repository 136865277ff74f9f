"""The settings of the server and of `rewardserve score`, from `REWARD_*` variables and flags, and their validation.

Only `app` and the entry points use these classes: every other module is passed its values. A flag is the variable
without its prefix, in lower case with hyphens: `REWARD_BATCHING__MAX_TOKENS` is `--batching.max-tokens`.
"""

from __future__ import annotations

import base64
import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict, SettingsError

from rewardserve.model.backends import BACKENDS, DEVICES, ModelSpec, VllmSpec, require_backend, require_device
from rewardserve.model.contract import require_date
from rewardserve.model.reward import CombineSettings, PenaltySettings, PipelineError, RewardSettings, check_settings
from rewardserve.model.text.text_files import decode_text, error_reason, read_bounded
from rewardserve.model.traits import Lexicon, LexiconError
from rewardserve.service.auth.api_keys import ApiKeys, ApiKeysError
from rewardserve.service.auth.api_keys import read_api_keys as read_keys
from rewardserve.service.auth.tls import TlsError, TlsFiles, create_ssl_context
from rewardserve.service.review.policy import FILE_NAME, CapturePolicy
from rewardserve.service.tripwires.config import WireConfig, WireConfigError
from rewardserve.service.tripwires.honeypots import Honeypots, HoneypotsError
from rewardserve.service.tripwires.honeypots import read as read_honeypots
from rewardserve.service.tripwires.io.canaries import SHIPPED as SHIPPED_CANARIES
from rewardserve.service.tripwires.io.canaries import CanariesError, Canary
from rewardserve.service.tripwires.io.canaries import read as read_canaries
from rewardserve.service.tripwires.io.config_file import read_wire_config

ENV_PREFIX = "REWARD_"
AUTO_AUDIT_MODEL = "auto"
"""Audit model that stands for the judge beside the model in service."""
_MAX_BYTES = 64 * 2**20
_MAX_SECRET_BYTES = 4_096


def _checked_capture(text: str) -> str:
    return str(CapturePolicy.parse(text))


class Batching(BaseModel):
    """Settings of batching."""

    model_config = ConfigDict(extra="forbid")

    max_tokens: int | None = Field(
        None,
        gt=0,
        description="token budget of a batch; a longer row is a batch by itself; default: adapts to the time of a forward pass",
    )
    linger_ms: float = Field(
        2.0, ge=0.0, le=10_000.0, description="longest wait of a row for rows that are being encoded"
    )


class Cache(BaseModel):
    """Settings of the caches for scored rows."""

    model_config = ConfigDict(extra="forbid")

    scores: int = Field(
        65_536, ge=0, description="entries of the score cache for repeated rows, half a kB each; 0: off"
    )
    prefix_mib: int = Field(
        256, ge=0, description="size of the key-value cache for common prefixes across batches; 0: off"
    )


class Vllm(BaseModel):
    """Settings of vLLM's engine, for the backend vllm."""

    model_config = ConfigDict(extra="forbid")

    tensor_parallel: int = Field(1, gt=0, description="tensor parallelism: GPUs that share each layer")
    pipeline_parallel: int = Field(1, gt=0, description="pipeline parallelism: stages of layers, each on separate GPUs")
    gpu_memory_utilization: float | None = Field(
        None, gt=0.0, le=1.0, description="share of a GPU's memory for one model; default: vLLM's"
    )
    max_num_seqs: int | None = Field(None, gt=0, description="rows in one forward pass; default: vLLM's")
    enforce_eager: bool = Field(
        False, description="skip compilation and CUDA graphs: starts sooner, scores more slowly"
    )
    stall_timeout_s: float = Field(
        300.0, gt=0.0, description="treat the engine as dead when rows wait and none returns for this long"
    )


class Combine(BaseModel):
    """How the scores of several models or heads are combined into one reward."""

    model_config = ConfigDict(extra="forbid")

    method: Literal["sum", "mean", "min", "softmin", "and"] | None = Field(
        None,
        description="combination of scores; default: the weighted sum of a model's heads; of several models or members the "
        "softmin where scores are normalised, else the mean",
    )
    beta: float = Field(0.5, ge=0.0, description="temperature of softmin; 0: min, inf: the mean")
    weights: dict[str, float] = Field(
        {},
        description="weights in JSON, by model of an ensemble, else by head (not with method sum, whose heads keep those of the "
        "checkpoint); default: those of the checkpoint, 1 for a model",
    )


class Penalties(BaseModel):
    """Penalties that are subtracted from a reward, in units of the reward; 0: off."""

    model_config = ConfigDict(extra="forbid")

    missing_end: float = Field(0.0, ge=0.0, allow_inf_nan=False, description="penalty for a response that was cut off")
    overlong: float = Field(
        0.0, ge=0.0, allow_inf_nan=False, description="penalty for a response of overlong_end tokens or more"
    )
    overlong_start: int | None = Field(
        None,
        ge=0,
        description="response length in tokens from which overlong grows from 0; default: none, and overlong needs one",
    )
    overlong_end: int | None = Field(
        None,
        gt=0,
        description="response length in tokens at which overlong is reached; default: none, and overlong needs one",
    )
    repetition: float = Field(
        0.0, ge=0.0, allow_inf_nan=False, description="penalty for a response in which all trigrams are repeated"
    )
    repetition_above: float | None = Field(
        None, ge=0.0, lt=1.0, description="share of repeated trigrams without penalty; default: the calibration's"
    )


class Tripwires(BaseModel):
    """Settings of the trip wires."""

    model_config = ConfigDict(extra="forbid")

    cpu_share: float = Field(
        0.02,
        ge=0.0,
        le=1.0,
        description="share of a core for trip wires and attribution; 0: inspect no sample, 1: all, without a limit",
    )
    window: int = Field(128, ge=16, description="samples of a run between two evaluations of its trip wires")
    run_ends_s: float = Field(
        1800.0,
        gt=0.0,
        description="time without samples after which a run has ended and its alerts resolve; longer than a training step",
    )
    config_file: Path | None = Field(
        None, description="TOML file with thresholds, severities and phrases; default: built-in values"
    )
    canaries_file: Path | None = Field(
        None, description="JSON file with your pairs of an honest answer and an exploit; empty: the built-in ones"
    )
    canaries_every_s: float = Field(600.0, gt=0.0, description="interval between two scorings of the canaries")
    baseline: Literal["run", "calibration"] = Field(
        "run", description="baseline of a run: its first samples, or the responses of the calibration"
    )
    honeypots_file: Path | None = Field(
        None, description="planted prompts, hashed by rewardserve honeypots; empty: none"
    )
    honeypots_key_file: Path | None = Field(
        None, description="key with which the prompts were hashed, 16 to 64 bytes; empty: no honeypots"
    )
    evidence_dir: Path | None = Field(
        None, description="folder for the texts behind an alert; empty: never write a conversation to disk"
    )

    attribution: bool = Field(
        True,
        description="keep some texts of each run in memory, to report what the extra reward is paid for; 0: keep none",
    )

    state_dir: Path | None = Field(
        None,
        description="folder for state that survives a restart: runs with their alerts, the queue of the webhook; no texts; "
        "empty: state ends with the process",
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
        0.1,
        gt=0.0,
        le=1.0,
        description="share of the samples that the audit judge scores, after the start of a run, of which it scores every prompt",
    )


class ReviewSettings(BaseModel):
    """Settings of the review store, which has the captured samples."""

    model_config = ConfigDict(extra="forbid")

    database: str = Field(
        "", description="path of a SQLite file, or URL of a Postgres database; empty: review.db in tripwires.state_dir"
    )
    max_age_days: float = Field(30.0, gt=0.0, description="age from which captured samples and alerts are deleted")
    max_mib: int = Field(4096, gt=0, description="size beyond which the oldest captured samples are deleted")


class LookaheadSettings(BaseModel):
    """Settings of the policy that writes the missing turns of continuations. No request can name another address."""

    model_config = ConfigDict(extra="forbid")

    policy_url: str = Field(
        "", description="base URL of an OpenAI-compatible server, such as http://policy:8000/v1; empty: no policy"
    )
    policy_model: str = Field("policy", description="name of the model in requests to the policy")
    policy_key_file: Path | None = Field(None, description="file with the API key for the policy; default: no key")
    timeout_s: float = Field(
        30.0,
        gt=0.0,
        allow_inf_nan=False,
        description="timeout of a request to the policy, from its wait for others to the end of its reply",
    )
    max_tokens: int = Field(512, gt=0, description="longest turn of the policy, in its tokens")
    max_bytes: int = Field(262_144, gt=0, description="largest reply of the policy")
    max_requests: int = Field(16, gt=0, le=1024, description="requests to the policy at once")


class AdmissionSettings(BaseModel):
    """Limits of the samples and tokens in flight."""

    model_config = ConfigDict(extra="forbid")

    max_samples: int = Field(4096, gt=0, description="samples in flight, over all requests")
    max_tokens: int = Field(1_048_576, gt=0, description="tokens in flight, estimated from characters")


class Swap(BaseModel):
    """Settings for loading another model while the server runs."""

    model_config = ConfigDict(extra="forbid")

    keep: int = Field(1, ge=0, description="replaced models that stay in memory, so that a rollback is immediate")
    load_timeout_s: float = Field(
        1800.0,
        ge=0.0,
        allow_inf_nan=False,
        description="timeout of a load; after it the load is aborted, and another can begin; 0: none",
    )
    watch_s: float = Field(
        0.0,
        ge=0.0,
        description="interval for checking whether `model` leads to a new checkpoint, which is then loaded; 0: on SIGHUP only",
    )


class ModelSettings(BaseSettings):
    """Settings of the model, its backend and its reward pipeline, shared by `serve`, `score`, `compare` and `mine`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        extra="forbid",
    )

    model: str = Field("", description="checkpoint folder or hub name; empty or `default`: the embedded default")
    ensemble: str = Field(
        "", description="several models as one, `name=model,name=model`; see combine; empty: one model"
    )
    backend: Annotated[str, AfterValidator(require_backend)] = Field(
        "torch", description=f"engine that runs the model: one of {', '.join(BACKENDS)}"
    )
    engine: Literal["auto", "packed", "padded"] = Field("auto", description="batch layout of the torch backend")
    deterministic: bool = Field(
        False, description="make scores bit-identical whatever the other rows of a batch; slower"
    )
    device: Annotated[str, AfterValidator(require_device)] = Field("auto", description=DEVICES)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="dtype of the network's weights"
    )
    matmul_precision: Literal["high", "highest"] = Field(
        "high",
        description="precision of float32 on a CPU with AMX; high: each product as three of bfloat16, with errors of about 1e-5",
    )
    contract_mode: Literal["strict", "warn"] = Field(
        "strict", description="strict: refuse to serve if the contract is broken; warn: serve anyway"
    )
    allow_pickle: bool = Field(
        False, description="read weights in pickle files, which can run code: only from sources that you trust"
    )
    ignore_checkpoint_code: bool = Field(
        False, description="load a checkpoint with custom code (auto_map) without that code, which is never run"
    )
    template_date: Annotated[str, AfterValidator(require_date)] | None = Field(
        None,
        description="date for a chat template that renders one, YYYY-MM-DD, if the contract has none; default: 2024-07-26",
    )
    ending: Literal["template", "template_or_eos", "template_and_eos", "end_token", "eos"] | None = Field(
        None,
        description="how a row ends, if no contract states it; default: as in the trainer of the checkpoint's layout",
    )
    reads_at: Literal["last", "last_non_pad"] | None = Field(
        None,
        description="token at which the score is read, if no contract states it; default: as in the trainer of the layout",
    )
    normalize: bool | None = Field(
        None, description="normalise scores by the calibration's mean and deviation; default: on if it has them"
    )
    combine: Combine = Combine()
    length_debias: float = Field(
        0.0, ge=0.0, le=1.0, description="share of the length effect in the calibration that is removed from scores"
    )
    penalties: Penalties = Penalties()
    shape: Literal["none", "cap", "softcap", "par", "lsc"] | None = Field(
        None,
        description="last stage of the reward pipeline; cap makes rewards beyond a cap equal, softcap keeps their order; "
        "default: cap if there are caps",
    )
    slope: float = Field(1.0, gt=0.0, allow_inf_nan=False, description="k of par and lsc, in log odds")
    cap_low: float | None = Field(
        None,
        allow_inf_nan=False,
        description="lowest reward, in units of the input of the cap; default: the calibration's, if neither cap is set",
    )
    cap_high: float | None = Field(
        None,
        allow_inf_nan=False,
        description="highest reward, in units of the input of the cap; default: the calibration's, if neither cap is set",
    )
    max_input_tokens: int | None = Field(
        None, gt=0, description="longest sample in tokens; default: the limit of the model"
    )
    truncation: Literal["prompt_left", "error"] | None = Field(
        None, description="treatment of samples that are too long; default: as in the contract"
    )
    batching: Batching = Batching()
    tripwires: Tripwires = Tripwires()
    audit_model: str = Field(
        "",
        description="second model that scores a share of the samples, for the trip wires only; auto: the one that lies beside "
        "the model; empty: none",
    )
    lookahead: LookaheadSettings = LookaheadSettings()
    cache: Cache = Cache()
    vllm: Vllm = Vllm()
    encoder_threads: int = Field(min(4, os.cpu_count() or 1), gt=0, le=64, description="threads that tokenise")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="lowest level of events that are logged"
    )
    log_format: Literal["json", "text"] = Field("text", description="format of the log, one event a line")

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        """Raise ValueError with a remedy if settings contradict each other."""
        if self.ensemble and self.model:
            raise ValueError("REWARD_MODEL and REWARD_ENSEMBLE are both set: set one of them.")
        longest, budget = self.max_input_tokens, self.batching.max_tokens
        if longest is not None and budget is not None and longest > budget:
            raise ValueError(
                f"REWARD_MAX_INPUT_TOKENS={longest} exceeds REWARD_BATCHING__MAX_TOKENS={budget}: such a row would never fit in a "
                f"batch. Raise REWARD_BATCHING__MAX_TOKENS or lower REWARD_MAX_INPUT_TOKENS."
            )
        if self.cap_low is not None and self.cap_high is not None and self.cap_low >= self.cap_high:
            raise ValueError(
                f"REWARD_CAP_LOW={self.cap_low} is not below REWARD_CAP_HIGH={self.cap_high}: lower the first or raise the second."
            )
        if self.shape in ("none", "par", "lsc") and (self.cap_low is not None or self.cap_high is not None):
            raise ValueError(
                f"REWARD_SHAPE={self.shape} has no caps, but one is set. Leave out REWARD_CAP_LOW and REWARD_CAP_HIGH, or choose "
                "the shape cap or softcap."
            )
        if not _is_http_url(self.lookahead.policy_url):
            raise ValueError(
                "REWARD_LOOKAHEAD__POLICY_URL is not a valid URL: it begins with http:// or https://, and names a host."
            )
        try:
            check_settings(self.reward_settings(), list(self.named_models()))
        except PipelineError as error:
            raise ValueError(str(error)) from None
        return self

    def named_models(self) -> dict[str, str]:
        """Parse `ensemble` into models by name; empty if there is one model. Raise ValueError."""
        pairs = [pair.partition("=") for pair in self.ensemble.split(",") if pair.strip()]
        named = {name.strip(): model.strip() for name, _, model in pairs}
        if self.ensemble and (len(named) != len(pairs) or len(named) < 2 or not all(named) or not all(named.values())):
            raise ValueError(
                f"REWARD_ENSEMBLE={self.ensemble} is not a list of two or more `name=model` with different names, such as "
                "`a=/models/a,b=/models/b`."
            )
        return named

    def model_spec(self, model: str | None = None) -> ModelSpec:
        """Build the argument of `rewardserve.model.backends.load`, for `model` if given, else for the configured one."""
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
        """Read `tripwires.config_file`. Raise `SettingsError`."""
        path = self.tripwires.config_file
        if path is None:
            return WireConfig()
        try:
            return read_wire_config(path)
        except WireConfigError as error:
            raise SettingsError(f"REWARD_TRIPWIRES__CONFIG_FILE={path}: {error}.") from None

    def read_honeypots(self) -> Honeypots | None:
        """Read the honeypots; None if no file is set. Raise `SettingsError`."""
        path, key_path = self.tripwires.honeypots_file, self.tripwires.honeypots_key_file
        if path is None:
            return None
        if key_path is None:
            raise SettingsError(
                "REWARD_TRIPWIRES__HONEYPOTS_FILE is set without its key: set REWARD_TRIPWIRES__HONEYPOTS_KEY_FILE."
            )
        try:
            texts = decode_text(read_bounded(path, _MAX_BYTES)).split("\n")
            return read_honeypots(texts, read_bounded(key_path, _MAX_BYTES).strip())
        except (OSError, ValueError) as error:
            raise SettingsError(f"REWARD_TRIPWIRES__HONEYPOTS_FILE cannot be read: {error_reason(error)}.") from None
        except HoneypotsError as error:
            raise SettingsError(f"REWARD_TRIPWIRES__HONEYPOTS_FILE={path}: {error}.") from None

    def read_policy_key(self) -> str:
        """Read `lookahead.policy_key_file`; empty: none is set. Raise `SettingsError`."""
        path = self.lookahead.policy_key_file
        if path is None:
            return ""
        try:
            key = decode_text(read_bounded(path, _MAX_BYTES)).strip()
        except (OSError, ValueError) as error:
            raise SettingsError(f"REWARD_LOOKAHEAD__POLICY_KEY_FILE cannot be read: {error_reason(error)}.") from None
        if not (key.isascii() and key.isprintable() and key):
            raise SettingsError("REWARD_LOOKAHEAD__POLICY_KEY_FILE must have one line, with a key of printable ASCII.")
        return key

    def read_lexicon(self) -> Lexicon:
        """Read the phrases that `tripwires.config_file` names, or the shipped ones. Raise `SettingsError`."""
        try:
            return Lexicon.read([Path(name) for name in self.wire_config().lexicons])
        except LexiconError as error:
            raise SettingsError(f"REWARD_TRIPWIRES__CONFIG_FILE={self.tripwires.config_file}: {error}.") from None

    def read_canaries(self) -> list[Canary]:
        """Read `tripwires.canaries_file`, or the shipped canaries. Raise `SettingsError`."""
        try:
            return read_canaries(self.tripwires.canaries_file or SHIPPED_CANARIES)
        except CanariesError as error:
            raise SettingsError(f"REWARD_TRIPWIRES__CANARIES_FILE={self.tripwires.canaries_file} {error}.") from None

    def make_folders(self) -> None:
        """Create the folders of the trip wires. Raise `SettingsError` if one is not writable."""
        for name in ("evidence_dir", "state_dir"):
            folder, variable = getattr(self.tripwires, name), f"{ENV_PREFIX}TRIPWIRES__{name.upper()}"
            if folder is None:
                continue
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                raise SettingsError(f"{variable}={folder}: {error.strerror}.") from None
            if not os.access(folder, os.W_OK | os.X_OK):
                raise SettingsError(f"{variable}={folder} is not writable.")

    def reward_settings(self) -> RewardSettings:
        """Build the settings of `build_pipeline`."""
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

    model: CliPositionalArg[str] = Field(
        "", description="checkpoint folder or hub name; empty or `default`: the embedded default"
    )
    host: str = Field("127.0.0.1", description="bind address")
    port: int = Field(8000, ge=0, le=65_535, description="bind port; 0: a free one")
    shared_port: int | None = Field(
        None,
        ge=1,
        le=65_535,
        description="second port, open while a model is loaded; replicas of one machine can share it; default: none",
    )
    admission: AdmissionSettings = AdmissionSettings()
    swap: Swap = Swap()
    model_aliases: str = Field(
        "",
        description="further model names that requests may send as `model`, separated by commas; others are refused "
        "with 404; empty: none",
    )
    verify_on_failure: Literal["mask", "refuse"] = Field(
        "mask",
        description="reply of POST /verify (NeMo-Gym) for an episode without a score: masked, or an error status",
    )
    overload_status: Literal[503, 429] = Field(503, description="HTTP status of an overloaded server")
    max_samples_per_request: int = Field(1024, gt=0, description="most samples of a request; more are refused with 422")
    max_body_bytes: int = Field(
        64 * 2**20, gt=0, description="largest body of a request; larger ones are refused with 413"
    )
    max_body_bytes_in_flight: int = Field(
        256 * 2**20, gt=0, description="bytes of all bodies in flight; beyond it, requests are refused as overloaded"
    )
    body_timeout_s: float = Field(30.0, gt=0, description="longest time for a body to arrive; beyond it: 408")
    head_timeout_s: float = Field(
        10.0, gt=0, description="longest time for the head of a request to arrive; beyond it: 408"
    )
    keep_alive_s: float = Field(
        75.0,
        gt=0,
        description="idle timeout of a connection between two requests; set it above the idle timeout of a proxy",
    )
    max_connections: int | None = Field(
        None,
        gt=0,
        description="connections; beyond it, the one idle for longest is evicted; default: by file descriptors, at most 8192",
    )
    capture: Annotated[str, AfterValidator(_checked_capture)] = Field(
        "off",
        description="which samples are written with their texts to the review store; flagged: those with flags, and at an alert "
        "the first and latest ones of its run; share:0.01: these, and one prompt of a hundred with its responses; off: none",
    )
    review: ReviewSettings = ReviewSettings()
    webhook_url: str = Field("", description="URL to which alerts are sent as JSON by POST; empty: nowhere")
    webhook_secret_file: Path | None = Field(
        None,
        description="secrets of Standard Webhooks (whsec_...), one a line; each signs every alert; empty: alerts are not signed",
    )
    keys_file: Path | None = Field(
        None, description="file of API keys, see rewardserve keys; empty: no authentication, on loopback only"
    )
    metrics_key_required: bool = Field(False, description="require a key with the scope metrics for /metrics")
    allow_unauthenticated: bool = Field(False, description="serve without keys on addresses other than loopback")
    allowed_hosts: str = Field(
        "",
        description="without keys: host names of this server, separated by commas; *.NAME: all subdomains; *: any; "
        "empty: the bind address",
    )
    allowed_origins: str = Field(
        "",
        description="without keys: origins of web pages that may send requests, separated by commas; *: any; empty: none",
    )
    scorer_timeout_s: float = Field(
        60.0,
        ge=0.0,
        allow_inf_nan=False,
        description="longest forward pass; beyond it, requests are refused until it returns; 0: no limit",
    )
    tls_cert_file: Path | None = Field(None, description="certificate chain in PEM; empty: no TLS")
    tls_key_file: Path | None = Field(
        None, description="private key of the certificate in PEM, without a password; empty: no TLS"
    )
    tls_client_ca_file: Path | None = Field(
        None, description="require client certificates signed by this CA (mTLS), in PEM; empty: require none"
    )
    drain_timeout_s: float = Field(60.0, gt=0, description="longest wait for accepted requests at shutdown")

    @model_validator(mode="before")
    @classmethod
    def _numbers_from_text(cls, values: Any) -> Any:
        """Convert text from the environment, which pydantic does not do for a Literal of numbers."""
        if isinstance(values, dict) and str(values.get("overload_status", "")).isdigit():
            values = {**values, "overload_status": int(values["overload_status"])}
        if isinstance(values, dict):
            values = {k: None if v == "" and k.endswith("_file") else v for k, v in values.items()}
        return values

    @model_validator(mode="after")
    def _check_security_and_limits(self) -> Self:
        """Raise ValueError with a remedy if the server would be unsafe, or could never admit a request."""
        if self.keys_file is None and not self.allow_unauthenticated and not is_loopback(self.host):
            raise ValueError(
                f"REWARD_HOST={self.host} is reachable from other machines and there are no keys. Set REWARD_KEYS_FILE, bind "
                f"to 127.0.0.1, or set REWARD_ALLOW_UNAUTHENTICATED=1 to serve without authentication."
            )
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError(
                "a certificate needs its key. Set REWARD_TLS_CERT_FILE and REWARD_TLS_KEY_FILE, or neither."
            )
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError(
                "REWARD_TLS_CLIENT_CA_FILE is set, but there is no TLS. Set REWARD_TLS_CERT_FILE and REWARD_TLS_KEY_FILE too."
            )
        if self.metrics_key_required and self.keys_file is None:
            raise ValueError(
                "REWARD_METRICS_KEY_REQUIRED is set, but there are no keys. Set REWARD_KEYS_FILE, or leave out "
                "REWARD_METRICS_KEY_REQUIRED."
            )
        if CapturePolicy.parse(self.capture).is_on and not self.review_database():
            raise ValueError(
                f"REWARD_CAPTURE={self.capture} needs a place: set REWARD_TRIPWIRES__STATE_DIR to a folder, or "
                "REWARD_REVIEW__DATABASE to a file of SQLite or the URL of a Postgres database."
            )
        if not _is_http_url(self.webhook_url):
            # The message omits the URL, which often holds a token.
            raise ValueError(
                "REWARD_WEBHOOK_URL is not a valid URL: it begins with http:// or https://, and names a host."
            )
        if self.max_samples_per_request > self.admission.max_samples:
            raise ValueError(
                f"REWARD_MAX_SAMPLES_PER_REQUEST={self.max_samples_per_request} exceeds REWARD_ADMISSION__MAX_SAMPLES="
                f"{self.admission.max_samples}: such a request could never be admitted. Raise "
                f"REWARD_ADMISSION__MAX_SAMPLES or lower REWARD_MAX_SAMPLES_PER_REQUEST."
            )
        if self.max_body_bytes > self.max_body_bytes_in_flight:
            raise ValueError(
                f"REWARD_MAX_BODY_BYTES={self.max_body_bytes} exceeds REWARD_MAX_BODY_BYTES_IN_FLIGHT="
                f"{self.max_body_bytes_in_flight}: such a body could never be read. Raise REWARD_MAX_BODY_BYTES_IN_FLIGHT or "
                "lower REWARD_MAX_BODY_BYTES."
            )
        if self.max_input_tokens is not None and self.max_input_tokens > self.admission.max_tokens:
            raise ValueError(
                f"REWARD_MAX_INPUT_TOKENS={self.max_input_tokens} exceeds REWARD_ADMISSION__MAX_TOKENS="
                f"{self.admission.max_tokens}: such a sample could never be admitted. Raise REWARD_ADMISSION__MAX_TOKENS or "
                "lower REWARD_MAX_INPUT_TOKENS."
            )
        return self

    def review_database(self) -> str | Path | None:
        """The place of the review store; None: there is none."""
        if self.review.database:
            return self.review.database
        folder = self.tripwires.state_dir
        return folder / FILE_NAME if folder is not None and CapturePolicy.parse(self.capture).is_on else None

    def aliases(self) -> frozenset[str]:
        """Parse `model_aliases` into a set of names."""
        return frozenset(name.strip() for name in self.model_aliases.split(",") if name.strip())

    def watched_folders(self) -> list[Path]:
        """Return the folder of each model if `swap.watch_s` is set. Raise `SettingsError` if a model is not a folder."""
        if not self.swap.watch_s:
            return []
        models = [Path(each) for each in self.named_models().values() or [self.model]]
        if not all(str(model) != "." and model.is_dir() for model in models):
            raise SettingsError(
                f"REWARD_SWAP__WATCH_S={self.swap.watch_s:g}, but the model is not a folder, so it cannot be watched. Set "
                f"REWARD_MODEL to a folder, or to a link to one, or leave out REWARD_SWAP__WATCH_S."
            )
        return models

    def hosts(self) -> list[str]:
        """Parse `allowed_hosts` into a list."""
        return _listed(self.allowed_hosts)

    def origins(self) -> list[str]:
        """Parse `allowed_origins` into a list."""
        return _listed(self.allowed_origins)

    def read_keys(self) -> ApiKeys:
        """Read the keys of `keys_file`; none if it is not set. Raise `SettingsError`."""
        if self.keys_file is None:
            return ApiKeys()
        try:
            return read_keys(self.keys_file)
        except ApiKeysError as error:
            raise SettingsError(f"REWARD_KEYS_FILE={self.keys_file}: {error}.") from None

    def tls_files(self) -> TlsFiles | None:
        """Return the TLS files; None: no TLS. Raise `SettingsError` if they cannot be used."""
        if self.tls_cert_file is None or self.tls_key_file is None:
            return None
        files = TlsFiles(self.tls_cert_file, self.tls_key_file, self.tls_client_ca_file)
        try:
            create_ssl_context(files)
        except TlsError as error:
            raise SettingsError(f"REWARD_TLS_CERT_FILE: {error}.") from None
        return files

    def read_webhook_secrets(self) -> tuple[str, ...]:
        """Read `webhook_secret_file`, one secret of Standard Webhooks a line. Raise `SettingsError`."""
        path = self.webhook_secret_file
        if path is None:
            return ()
        try:
            secrets = tuple(decode_text(read_bounded(path, _MAX_SECRET_BYTES)).split())
        except (OSError, ValueError) as error:
            raise SettingsError(f"REWARD_WEBHOOK_SECRET_FILE={path} cannot be read: {error_reason(error)}.") from None
        if not secrets or not all(_is_webhook_secret(each) for each in secrets):
            raise SettingsError(
                f"REWARD_WEBHOOK_SECRET_FILE={path}: a line is whsec_ and 24 to 64 random bytes in base64. Generate one: "
                'echo "whsec_$(openssl rand -base64 32)"'
            )
        return secrets


class ScoreSettings(ModelSettings):
    """Score a file of samples: one result a line, in the same order."""

    input: CliPositionalArg[Path] = Field(
        description="file of samples in UTF-8, one JSON object a line, as in POST /score; not a pipe, as it is read twice. "
        "Complete lines may be appended between two runs"
    )
    output: CliPositionalArg[Path] = Field(
        description="file of results, one a line, in the same order. An existing file is continued if its lines of INPUT are "
        "unchanged (by digest), and model and settings are the same"
    )


def _is_http_url(text: str) -> bool:
    """Whether `text` is empty or a URL to which requests can be sent."""
    try:
        url = urlsplit(text)
        return not text or (
            url.scheme in ("http", "https")
            and bool(url.hostname)
            and url.port != 0
            and text.isprintable()
            and " " not in text
        )
    except ValueError:  # an unclosed bracket, or an invalid port
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
