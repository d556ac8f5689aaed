# SPDX-License-Identifier: Apache-2.0
"""`nvshmem-efa bench transport`: end to end on CPU threads; its GPU side on a made-up GPU; its figures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_world import TICK_NS, World, steps_of
from running import Command

from nvshmem_efa import bench_cli, bench_gpu, bench_pe, bench_plan, bench_transport
from nvshmem_efa.bench_plan import Goal, Step, from_text, plan
from nvshmem_efa.bench_result import CPU_LABEL, SCHEMA, commit_of, make_rows, summarize
from nvshmem_efa.bench_screen import show_transport_bench
from nvshmem_efa.bench_transport import BenchOptions, conclude
from nvshmem_efa.errors import ConfigError, EfaError, ExitCode, MissingError
from nvshmem_efa.machine import Machine
from nvshmem_efa.nvshmem import Nvshmem
from nvshmem_efa.processes import Member, Outcome

ROOT = Path(__file__).resolve().parent.parent.parent
PING_PONG = Step("put_signal", "put_signal", "round trip", 8, rounds=20, goal=Goal(ratio_at_most=0.6))
RATE = Step("rate", "rate", "2 posters", 8, 100, 2, 5, "M/s", Goal(ratio_at_least=10))

# ---- end to end, on CPU threads ----


@pytest.mark.xdist_group("jobs")
def test_a_run_on_cpu_threads_measures_both_paths_and_says_what_its_figures_are(
    command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "result.json"
    only = [word for test in ("put", "put_signal", "amo", "alltoall", "rate") for word in ("--only", test)]
    done = command("bench", "transport", "--cpu", "--quick", *only, "--json", str(file))
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert (result["schema"], result["label"], result["exit_code"]) == (SCHEMA, CPU_LABEL, 0)
    assert result["options"]["pes"] == 2 and result["errors"] == []
    assert "CPU threads post to 4 soft queues" in result["describe"]
    assert result["checked"]["mismatches"] == 0 and result["checked"]["bytes"] > 1 << 20
    assert result["stats"]["gpu_work_requests"] > 1000  # the posters did post
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", result["started"])
    assert {row["test"] for row in result["rows"]} == {"put", "put_signal", "amo", "alltoall", "rate"}
    for row in result["rows"]:
        assert row["ratio"] > 0 and row["meets_goal"] is None, row
        for path in ("posted", "proxy"):
            figures = row[path]
            order = [figures[name] for name in ("min", "p10", "median", "p90", "p99", "max")]
            assert order == sorted(order) and figures["min"] > 0 and figures["samples"] >= 3, row
    assert re.fullmatch(r"[0-9a-f]{64}", result["versions"]["library_sha256"])
    assert result["settings"]["NVSHMEM_EFA_GPU_QUEUES"] == "4"
    assert CPU_LABEL in done.stdout and "the goal is for posters on a GPU" in done.stdout


@pytest.mark.xdist_group("jobs")
def test_one_pe_plays_with_itself_and_what_needs_another_is_null_and_says_so(command: Command) -> None:
    done = command("bench", "transport", "--cpu", "--pes", "1", "--quick", "--only", "put_signal", "--only", "quiet",
                   "--only", "alltoall", "--json", "-")  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["round trip"]["ratio"] > 0 and rows["8 dirty queues"]["ratio"] > 0
    assert rows["1 PEs"]["posted"] is None and rows["1 PEs"]["ratio"] is None
    assert rows["1 PEs"]["ratio_note"] == "posted: needs another PE"


def test_what_the_program_refuses_ends_the_run_with_its_words(command: Command, tmp_path: Path) -> None:
    env = {"NVSHMEM_EFA_RAILS": "99"}
    done = command("bench", "transport", "--cpu", "--pes", "1", "--quick", "--only", "p", env=env)
    assert done.returncode == 2
    assert "NVSHMEM_EFA_RAILS=99 is not in 0..16" in done.stdout + done.stderr
    done = command("bench", "transport", "--cpu", "--pes", "17")
    assert done.returncode == 2 and "--pes 17 is not in 1..16" in done.stderr
    done = command("bench", "transport", "--cpu", "--json", str(tmp_path / "absent" / "file"))
    assert done.returncode == 2 and "there is no folder" in done.stderr


@pytest.mark.gpu
@pytest.mark.xdist_group("gpus")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("pes", [pytest.param(pes, marks=pytest.mark.gpus(pes)) for pes in (1, 2, 4)])
def test_a_run_on_gpus_measures_what_each_path_can(command: Command, pes: int) -> None:
    done = command("bench", "transport", "--quick", "--pes", str(pes), "--json", "-", timeout=350)
    if done.returncode == ExitCode.MISSING:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    result = json.loads(done.stdout)
    assert result["on_gpu"] and result["machine"]["gpu"] and result["checked"]["mismatches"] == 0
    for row in result["rows"]:
        assert row["posted"] or row["posted_note"] == bench_gpu.ALONE, row
        assert row["proxy"] or row["proxy_note"] in {
            *bench_gpu.PROXY_MISSING.values(),
            bench_gpu.PROXY_ALONE,
            bench_gpu.ALONE,
        }


# ---- the plan ----


@pytest.mark.parametrize("on_gpu", [False, True])
def test_programs_are_told_every_step_in_words_that_they_understand(on_gpu: bool) -> None:
    steps = plan(on_gpu, 4)
    told = from_text(",".join(step.text for step in steps))
    assert told == [replace(step, test="", what="", unit="us", goal=None) for step in steps]
    known = re.search(r"kCalls\[\] = \{(.*?)\}", (ROOT / "perf" / "transport_steps.cpp").read_text())
    assert known and {step.call for step in steps} == set(re.findall(r'"(\w+)"', known[1]))
    assert {step.test for step in steps} == set(bench_plan.TESTS) == set(bench_cli.TESTS)
    assert len(plan(on_gpu, 4, quick=True)) < len(steps)


def test_one_test_can_be_asked_for_and_an_unknown_one_is_refused() -> None:
    assert {step.test for step in plan(False, 2, only=["rate"])} == {"rate"}
    with pytest.raises(ConfigError, match="--only speed: there is no such test"):
        plan(False, 2, only=["speed"])


def test_a_round_becomes_a_figure_in_its_rows_unit() -> None:
    assert Step("put", "put", "", 8).value(2500) == 2.5
    assert Step("issue", "issue", "", 8, in_flight=8).value(4000) == 0.5
    assert Step("put", "put", "", 1 << 20, 16, unit="GB/s").value(16 << 20) == 1.0
    assert RATE.value(1000) == 200.0


def test_the_gpus_arguments_are_laid_out_as_the_kernels_read_them() -> None:
    source = (ROOT / "transport_efa" / "kernels" / "bench_bodies.h").read_text()
    body = re.search(r"struct Args \{(.*?)\n\};", source, re.DOTALL)
    assert body
    fields = re.findall(r"^\s+((?:const )?\w+\*?) (\w+);", body[1], re.MULTILINE)
    sizes = {"int32_t": 4, "uint32_t": 4, "uint64_t": 8}
    ours = [(name, kind.__name__) for name, kind, *_ in bench_gpu.Args._fields_]
    assert [name for _, name in fields] == [name for name, _ in ours]
    for (kind, name), (_, mine) in zip(fields, ours, strict=True):
        width = 8 if "*" in kind else sizes[kind]
        assert getattr(bench_gpu.Args, name).size == width, (name, mine)
    words = {name: int(value) for name, value in re.findall(r"k(\w+) = (\d+)", source)}
    names = ("FailedRound", "BeginNs", "EndNs", "BeginTicks", "EndTicks", "WrongBytes", "RecordWords")
    assert [words[name] for name in names] == [0, 1, 2, 3, 4, 5, bench_gpu.RECORD_WORDS]


# ---- the GPU's side, on a made-up GPU ----

STEPS = ("issue:8:8:1:20", "put:512:1:1:20", "put:64:16:1:20", "get:512:2:1:20", "p:8:1:1:20", "put_signal:48:1:1:20",
         "amo_add:8:1:1:20", "amo_fetch:8:1:1:20", "quiet:8:4:1:20", "quiet:8:0:1:20", "alltoall:40:1:1:20",
         "rate:8:2:256:3")  # fmt: skip


def records_of(world: World, *texts: str) -> list[dict[str, Any]]:
    steps, records = steps_of(*texts), [{} for _ in world.pes]

    def body(pe: int) -> None:
        runner = bench_gpu.StepRunner(world.pes[pe], world.pes[pe], world.kernels[pe], steps)
        records[pe] = bench_pe.measure(runner, steps, lambda phase, done: None)

    world.on_all(body)
    return records


@pytest.mark.parametrize("pes", [1, 2, 4])
def test_every_step_runs_on_gpus_and_leaves_what_it_must(pes: int) -> None:
    world = World(pes)
    first, *others = records_of(world, *STEPS)
    assert all(record["result"] == "ok" for record in (first, *others))
    found = {(entry["step"], entry["path"]): entry for entry in first["results"]}
    assert len(found) == 2 * len(STEPS)
    for (step, path), entry in found.items():
        call = STEPS[step].split(":")[0]
        cannot = bench_gpu.PROXY_MISSING.get(call) if path == "proxy" else None
        if pes == 1 and path == "proxy":
            cannot = bench_gpu.PROXY_ALONE
        if pes == 1 and call == "alltoall":
            cannot = bench_gpu.ALONE
        assert entry.get("missing") == cannot, entry
        assert cannot or entry["samples_ns"]
    assert found[1, "posted"]["samples_ns"] == [TICK_NS * n for n in range(1, 21)]
    assert found[len(STEPS) - 1, "posted"]["samples_ns"] == [7001.0] * 3  # two blocks: from the first's begin on
    assert not any(entry.get("samples_ns") for record in others for entry in record["results"])


def test_both_sides_of_a_ping_pong_ask_the_stream_in_turn() -> None:
    world = World(2)
    records_of(world, "put_signal:8:1:1:20")
    first, second = ([call for call in pe.calls if call != "quiet"] for pe in world.pes)
    assert first[:4] == ["put_signal 1 to 1", "wait 1", "put_signal 2 to 1", "wait 2"]
    assert second[:4] == ["wait 1", "put_signal 1 to 0", "wait 2", "put_signal 2 to 0"]
    assert ("bench_put_signal", 1, 1) in world.kernels[1].launches


TRANSFERS = [text for text in STEPS if not text.startswith(("p:", "amo", "quiet:8:0"))]


@pytest.mark.parametrize("text", TRANSFERS)
def test_a_byte_that_is_not_as_it_must_be_is_found_by_its_holder(text: str) -> None:
    world = World(2)
    world.spoil = True
    records = records_of(world, text)
    assert "failed" in {record["result"] for record in records}
    wrong = next(record["checked"]["first_mismatch"] for record in records if record["result"] == "failed")
    assert re.match(rf"{text.split(':')[0]}, posted: \d+ of \d+ bytes from PE [01]", wrong)


def test_a_word_that_is_not_as_it_must_be_is_found() -> None:
    world = World(2)
    world.pes[0].word = lambda *_: None  # type: ignore[method-assign]
    records = records_of(world, "amo_add:8:2:1:20")
    assert records[1]["checked"]["first_mismatch"] == "amo_add, posted: the word is 0, not 46"


def test_a_call_that_failed_inside_a_kernel_is_an_error_with_its_round() -> None:
    world = World(2)
    world.failing = {"bench_calls"}
    with pytest.raises(EfaError, match="put of 8 bytes: a call of the device API failed in round 3") as failed:
        records_of(world, "put:8:1:1:5")
    assert "standard error" in failed.value.hint


def test_reports_have_room_for_every_step() -> None:
    for text in STEPS:
        world = World(1)
        records_of(world, text)
        assert world.kernels[0].words_most <= bench_gpu.report_words(steps_of(text)), text


class Gpus:
    """A machine with GPUs and NVSHMEM, as far as starting the PEs goes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.commands: list[list[str]] = []
        self.env: dict[str, str] = {}
        found = Nvshmem(Path("/nv"), Path("/nv/lib/libnvshmem_host.so.3"), "test", "3.4.5", (3,))
        monkeypatch.setattr(Machine, "gpu_count", lambda _: count)
        monkeypatch.setattr(bench_transport, "find_nvshmem", lambda: found)
        monkeypatch.setattr(bench_transport, "_image", lambda: (Path("/cache/transport_bench-sm_90a-1.cubin"), "13.0"))
        monkeypatch.setattr(bench_transport, "run_job", self.run_job)

    def run_job(self, commands: list[list[str]], env: dict[str, str], *_: object) -> Outcome:
        self.commands, self.env = commands, env
        return Outcome([], False, None, 1.0)


def run(**options: Any) -> Any:  # noqa: ANN401
    return bench_transport.run_transport_bench(BenchOptions(**options), lambda *_: None, lambda _: None)


@pytest.mark.parametrize(("gpus", "pes"), [(1, 1), (2, 2), (3, 2), (4, 4), (8, 4)])
def test_on_gpus_a_pe_is_started_for_each_with_all_that_it_needs(
    monkeypatch: pytest.MonkeyPatch, gpus: int, pes: int
) -> None:
    machine = Gpus(monkeypatch, gpus)
    result = run(only=("rate",))
    assert result.on_gpu and result.options["pes"] == pes and result.versions["nvrtc"] == "13.0"
    assert len(machine.commands) == pes
    for pe, command in enumerate(machine.commands):
        assert command[1:3] == ["-m", "nvshmem_efa.bench_pe"]
        words = [word.format(record_fd=7, progress_fd=8) for word in command[3:]]
        monkeypatch.setattr(sys, "argv", ["bench_pe", *words])
        args = bench_pe.arguments()
        assert (args.pe, args.pes, args.record_fd, args.progress_fd) == (pe, pes, 7, 8)
        assert [step.posters for step in args.steps] == [1, 32, 8192]
    assert "libnvshmem_efa_shim" in machine.env["LD_PRELOAD"]
    assert machine.env["NVSHMEM_REMOTE_TRANSPORT"] == "efa" and machine.env["NVSHMEM_DISABLE_P2P"] == "1"


def test_what_the_user_sets_comes_before_what_the_bench_would(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Gpus(monkeypatch, 1)
    monkeypatch.setenv("NVSHMEM_EFA_MODE", "relay")
    monkeypatch.setenv("NVSHMEM_SYMMETRIC_SIZE", "7")
    run(only=("p",))
    assert (machine.env["NVSHMEM_EFA_MODE"], machine.env["NVSHMEM_SYMMETRIC_SIZE"]) == ("relay", "7")
    assert machine.env["NVSHMEM_EFA_GPU_QUEUES"] == "4"


def test_gpus_without_nvshmem_and_more_pes_than_gpus_are_refused_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Gpus(monkeypatch, 2)
    with pytest.raises(ConfigError, match="--pes 4 is more than the 2") as refused:
        run(pes=4)
    assert "--cpu" in refused.value.hint
    monkeypatch.setattr(bench_transport, "find_nvshmem", lambda: None)
    with pytest.raises(MissingError, match="need NVSHMEM") as missing:
        run()
    assert "--cpu" in missing.value.hint


def test_pes_share_gpus_only_where_mps_runs_and_the_result_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Gpus(monkeypatch, 2)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    with pytest.raises(ConfigError, match="needs NVIDIA MPS") as refused:
        run(pes=4, share_gpus=True)
    assert "nvidia-cuda-mps-control" in refused.value.hint
    (tmp_path / "control").touch()
    result = run(pes=4, share_gpus=True, only=("rate",))
    assert result.label.endswith("4 PEs share 2 GPUs through MPS")
    assert machine.env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "50"
    assert [command[command.index("--gpu") + 1] for command in machine.commands] == ["0", "1", "0", "1"]
    alone = run(pes=2, share_gpus=True, only=("rate",))  # enough GPUs: nothing is shared, and nothing is set
    assert "MPS" not in alone.label and "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in machine.env


# ---- figures ----


def entries(posted: list[float], proxy: list[float]) -> list[dict[str, Any]]:
    return [{"step": 0, "path": "posted", "samples_ns": posted}, {"step": 0, "path": "proxy", "samples_ns": proxy}]


def test_a_summary_is_a_median_with_its_spread() -> None:
    summary = summarize([float(n) for n in range(100, 0, -1)])
    assert (summary.median, summary.min, summary.max, summary.samples) == (50.5, 1.0, 100.0, 100)
    assert (summary.p10, summary.p90, summary.p99) == (11.0, 90.0, 99.0)


@pytest.mark.parametrize(("posted", "meets"), [(3000.0, True), (3010.0, False)])
def test_a_goal_is_kept_or_not_on_a_gpu_only(posted: float, meets: bool) -> None:
    on_gpu, on_cpu = (make_rows([PING_PONG], entries([posted] * 3, [5000.0] * 3), gpu)[0] for gpu in (True, False))
    assert (on_gpu.ratio, on_gpu.meets_goal, on_gpu.goal) == (posted / 5000, meets, {"ratio_at_most": 0.6})
    assert (on_cpu.meets_goal, on_cpu.goal_note) == (None, "the goal is for posters on a GPU")


def test_of_rates_more_is_better_and_the_goal_is_a_floor() -> None:
    row = make_rows([RATE], entries([1000.0], [9900.0]), True)[0]
    assert (row.better, row.ratio, row.meets_goal) == ("more", 9.9, False)
    assert make_rows([RATE], entries([1000.0], [10_000.0]), True)[0].meets_goal is True


def test_a_ratio_that_could_not_be_measured_is_null_and_says_why() -> None:
    missing = [entries([5.0], [])[0], {"step": 0, "path": "proxy", "missing": "no such call"}]
    row = make_rows([PING_PONG], missing, True)[0]
    assert (row.ratio, row.ratio_note) == (None, "proxy: no such call")
    assert (row.meets_goal, row.goal_note) == (None, "there is no ratio")
    assert make_rows([PING_PONG], [], True)[0].ratio_note == "posted: the run ended before it"


def member(pe: int, code: int, record: dict[str, Any] | None) -> Member:
    process = subprocess.Popen(["sh", "-c", f"exit {code}"])
    process.wait()
    return Member(pe, process, json.dumps(record).encode() if record else b"", errors=b"last words\n")


def concluded(*members: Member, timed_out: bool = False) -> Any:  # noqa: ANN401
    failed = next((m.pe for m in members if m.returncode), None)
    outcome = Outcome(list(members), timed_out, failed, 1.5)
    env = {"HOME": "/", "NVSHMEM_X": "1"}
    return conclude(BenchOptions(), True, 2, [PING_PONG, RATE], outcome, {"package": "0"}, env)


def test_a_pe_that_failed_is_named_and_what_was_measured_before_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    good = {"pe": 0, "result": "ok", "describe": "mode soft", "machine": {"gpu": "H"}, "results": entries([1.0], [4.0])}
    result = concluded(member(0, 0, good), member(1, 4, None))
    assert result.exit_code == ExitCode.TIMEOUT
    assert "PE 1 ended with exit code 4" in result.errors[0] and "last words" in result.errors[0]
    assert result.rows[0].meets_goal is True and result.rows[1].ratio_note == "posted: the run ended before it"
    assert result.machine["gpu"] == "H" and result.settings == {"NVSHMEM_X": "1"}
    show_transport_bench(result)
    shown = capsys.readouterr().out
    assert "no speed of EFA hardware" in shown and "<= 0.6 yes" in shown and "last words" in shown
    late = concluded(member(0, 0, good), member(1, 0, {**good, "pe": 1}), timed_out=True)
    assert (late.exit_code, late.errors) == (ExitCode.TIMEOUT, ["no end after 300 s; all PEs were killed"])


def test_wrong_bytes_are_exit_code_1_in_words() -> None:
    wrong = {"pe": 1, "result": "failed", "checked": {"mismatches": 2, "first_mismatch": "put, posted: 1 of 8 bytes"}}
    result = concluded(member(0, 0, {"pe": 0, "result": "ok"}), member(1, 1, wrong))
    assert result.exit_code == ExitCode.FAILED and result.checked["mismatches"] == 2
    assert result.errors == ["PE 1: 2 wrong values; first: put, posted: 1 of 8 bytes"]


def test_the_commit_is_this_projects_own_or_none(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
    if (ROOT / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}\+?", commit_of(ROOT / "python") or "")
