"""Every server option that cannot be combined with --spec-prefill is refused by name, on ServerArgs that SGLang resolved.

SGLang rewrites options while it resolves them, so each case is a command line that goes the way of a server's.
"""

import argparse
import logging
import re
from types import SimpleNamespace
from unittest import mock

import pytest

from specprefill_sgl.compat import options
from specprefill_sgl.config import ConfigError

# first word of a row of compat's table -> the command lines that switch it on
COMMAND_LINES = {
    "--pp-size": ["--pp-size 2 --speculative-algorithm NGRAM"],
    "--attn-dp-size": [
        "--tp 2 --attn-dp-size 2 --pp-size 2",
        "--tp 2 --dp 2 --enable-dp-attention --pp-size 2",
    ],
    "--dcp-size": ["--tp 2 --dcp-size 2"],
    "--attn-cp-size": ["--tp 2 --attn-cp-size 2"],
    "--enable-mis": ["--enable-mis --attention-backend flashinfer"],
    "--dllm-algorithm": ["--dllm-algorithm LowConfidence"],
    "--enable-hisparse": ["--enable-hisparse"],
    "--enable-unified-cache-external-linker": ["--enable-unified-cache-external-linker"],
    "--enable-lmcache": ["--enable-lmcache"],
    "--enable-flexkv": ["--enable-flexkv"],
    "--radix-cache-backend": ["--radix-cache-backend other"],
    "--kv-canary": ["--kv-canary log", "--kv-canary raise"],
    "--enable-pdmux": ["--enable-pdmux --chunked-prefill-size -1 --disable-overlap-schedule"],
    "--elastic-ep-backend": ["--elastic-ep-backend mooncake"],
    "--enable-memory-saver": ["--enable-memory-saver"],
    "--hicache-host-memory-mode": [
        "--pp-size 2 --enable-hierarchical-cache --hicache-storage-backend file --hicache-host-memory-mode buffer_only"
    ],
    "--encoder-only": ["--encoder-only"],
    "--is-embedding": ["--is-embedding"],
    "--enable-watermark": ["--enable-watermark --device cuda"],
}

# the same of what is refused beside --disaggregation-mode
BESIDE_DISAGGREGATION = {
    "--speculative-algorithm": "--disaggregation-mode decode --speculative-algorithm NGRAM",
    "--pp-size": "--disaggregation-mode prefill --pp-size 2",
    "--attn-dp-size (--enable-dp-attention)": "--disaggregation-mode prefill --tp 2 --attn-dp-size 2",
    "--enable-hierarchical-cache": "--disaggregation-mode prefill --enable-hierarchical-cache",
    "--disaggregation-decode-enable-radix-cache": "--disaggregation-mode decode --disaggregation-decode-enable-radix-cache",
    "--disaggregation-decode-enable-offload-kvcache": (
        "--disaggregation-mode decode --disaggregation-decode-enable-offload-kvcache --hicache-storage-backend file"
    ),
    "--disaggregation-decode-host-receive-threshold": (
        "--disaggregation-mode decode --disaggregation-decode-host-receive-threshold 0.5"
    ),
    "--enable-pd-role-switch": "--disaggregation-mode decode --enable-pd-role-switch",
    "--kv-cache-dtype mxfp8": "--disaggregation-mode prefill --kv-cache-dtype mxfp8",
    "SGLANG_DISAGG_STAGING_BUFFER": "--disaggregation-mode prefill --chunked-prefill-size 512",
}

# options that SGLang resolves for some architectures only
ARCHITECTURES = {"--dllm-algorithm": "SDARForCausalLM", "--encoder-only": "Qwen2VLForConditionalGeneration"}

# options that SGLang's own check refuses before ours could: only their resolution is SGLang's here
REFUSED_BY_SGLANG = {
    "--pp-size": "it knows stages with EAGLE only, whose head is not at hand",
    "--enable-hisparse": "needs a model with DSA, whose resolution needs a GPU",
}


_SPECULATION_ROWS = [row for row in options._REJECTED_OPTIONS if row[0].startswith("--speculative-algorithm")]
_OTHER_ROWS = [row for row in options._REJECTED_OPTIONS if row not in _SPECULATION_ROWS]
_ACCEPTED = (
    "",
    "--tp 2",
    "--dp 2",
    "--pp-size 2",
    "--tp 2 --attn-dp-size 2",
    "--enable-mixed-chunk",
    "--disable-radix-cache",
    "--tokenizer-worker-num 2",
    "--enable-hierarchical-cache",
    "--enable-hierarchical-cache --hicache-storage-backend file",
    '--kv-events-config {"publisher":"zmq"}',
    "--enable-streaming-session",
    "--disaggregation-mode prefill",
    "--disaggregation-mode decode",
    "--disaggregation-mode prefill --tp 2 --page-size 16",
    "--enable-memory-saver --enable-draft-weights-cpu-backup",
    "--enable-memory-saver --enable-weights-cpu-backup",
)


@pytest.mark.parametrize("line", _ACCEPTED)
def test_other_options_are_accepted(resolved, line):
    options.check_server_options(resolved(line))


def _flag(name):
    return name.split()[0]


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, _, _ in _OTHER_ROWS for line in COMMAND_LINES[_flag(name)]])
def test_each_option_is_refused_by_name(resolved, name, line):
    flag = _flag(name)
    server_args = resolved(line, architecture=ARCHITECTURES.get(flag), check=flag not in REFUSED_BY_SGLANG)
    with pytest.raises(ConfigError, match=re.escape(f"--spec-prefill cannot be combined with {name}:")):
        options.check_server_options(server_args)


@pytest.mark.parametrize("name", [name for name, _, _ in options._REJECTED_BESIDE_DISAGGREGATION])
def test_each_option_is_refused_beside_disaggregation(resolved, monkeypatch, name):
    monkeypatch.setattr(options, "_REJECTED_OPTIONS", ())
    if name == "SGLANG_DISAGG_STAGING_BUFFER":
        monkeypatch.setenv(name, "1")
    if name == "--kv-cache-dtype mxfp8":  # SGLang resolves it for some GPUs only
        monkeypatch.setattr("sglang.srt.arg_groups.kv_cache_hook.get_platform", lambda: mock.Mock(is_blackwell=True))
    server_args = resolved(BESIDE_DISAGGREGATION[name], check=name != "--kv-cache-dtype mxfp8")
    with pytest.raises(ConfigError, match=re.escape(f"cannot be combined with {name} with --disaggregation-mode:")):
        options.check_server_options(server_args)


@pytest.mark.parametrize("algorithm", ["NGRAM", "EAGLE", "EAGLE3", "NEXTN", "STANDALONE"])
def test_speculative_decoding_that_was_run(resolved, pair_of, monkeypatch, algorithm):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # else the CPU platform has none
    options.check_server_options(resolved(_speculative(algorithm, pair_of("llama")[1])))


def test_speculative_decoding_that_was_not(resolved, pair_of, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    server_args = resolved(_speculative("FROZEN_KV_MTP", pair_of("llama")[1]))
    with pytest.raises(ConfigError, match="with --speculative-algorithm FROZEN_KV_MTP: "):
        options.check_server_options(server_args)


@pytest.mark.parametrize("algorithm", ["DFLASH", "DSPARK", "UNO", "SUFFIX"])  # SGLang resolves them on a GPU only
def test_each_other_algorithm_is_refused_by_name(algorithm):
    refused = [name for name, is_on, _ in _SPECULATION_ROWS if is_on(SimpleNamespace(speculative_algorithm=algorithm))]
    assert refused == ["--speculative-algorithm" + ("" if algorithm == "SUFFIX" else f" {algorithm}")]


def _speculative(algorithm, draft):
    return f"--speculative-algorithm {algorithm} --speculative-draft-model-path {draft}"


@pytest.mark.parametrize("line", ["--smg-grpc-mode", "--grpc-mode"])
def test_a_front_end_that_checks_no_fields_is_warned_of(resolved, caplog, line):
    with caplog.at_level(logging.WARNING):
        options.check_server_options(resolved(line))
    assert "--spec-prefill with --smg-grpc-mode: " in caplog.text


@pytest.mark.parametrize("line", ["--skip-tokenizer-init", "--smg-grpc-mode", "--grpc-mode"])
def test_front_ends_that_make_no_tokens_of_a_drafts_own(resolved, line):
    assert [option for option, _ in options.cannot_read(resolved(line))] == [line.replace("--grpc", "--smg-grpc")]
    assert list(options.cannot_read(resolved(""))) == []


def test_command_lines_are_of_options_that_are_refused():
    assert COMMAND_LINES.keys() == {_flag(name) for name, _, _ in _OTHER_ROWS}


def test_each_named_flag_is_one_of_sglangs():
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    flags = {flag for name, _, _ in options._REJECTED_OPTIONS for flag in re.findall(r"--[\w-]+", name)}
    assert flags <= parser._option_string_actions.keys()


@pytest.mark.parametrize("backend", sorted(options._UNSUPPORTED_BACKENDS))
@pytest.mark.parametrize("flag", ["--attention-backend", "--prefill-attention-backend", "--decode-attention-backend"])
def test_attention_backends(resolved, flag, backend):
    with pytest.raises(ConfigError, match=f"--spec-prefill cannot be combined with {flag} {backend}:"):
        options.check_server_options(resolved(f"{flag} {backend}"))


def test_a_backend_that_sglang_renames(resolved):
    with pytest.raises(ConfigError, match="--attention-backend dsv4"):
        options.check_server_options(resolved("--attention-backend compressed"))


@pytest.mark.parametrize("value", ["1", "true", "y"])
@pytest.mark.parametrize("name", sorted(options._REJECTED_ENVIRONMENT))
def test_environment(resolved, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name):
        options.check_server_options(resolved(""))


def test_workers_that_would_import_another_app(resolved, monkeypatch):
    monkeypatch.setenv("SGLANG_HTTP_SERVER_APP_PATH", "sglang.srt.entrypoints.http_server:app")
    options.check_server_options(resolved(""))
    with pytest.raises(ConfigError, match="SGLANG_HTTP_SERVER_APP_PATH: the workers of --tokenizer-worker-num"):
        options.check_server_options(resolved("--tokenizer-worker-num 2"))
    monkeypatch.setenv("SGLANG_HTTP_SERVER_APP_PATH", options.APP_OF_WORKERS)
    options.check_server_options(resolved("--tokenizer-worker-num 2"))


def test_all_refusals_are_found(resolved):
    found = options.refusals(resolved("--enable-lmcache --kv-canary log --attention-backend dsv4"))
    names = [re.findall(r"combined with (.*?):", sentence)[0] for sentence in found]
    assert names == ["--enable-lmcache", "--kv-canary", "--attention-backend dsv4"]


def test_untested_release_is_refused(monkeypatch):
    monkeypatch.setattr(options, "version", lambda name: "0.5.99")
    with pytest.raises(ConfigError, match=r"0\.5\.99"):
        options.check_version()
