"""The guards of the durability core, each broken in one place, and the tests that must notice.

`old` is a piece of the product that occurs exactly once in its file (a unit test holds the list to that), `new` is what
it would be if somebody forgot the guard. A guard that stands behind another one has a test of its own that reaches it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["INVARIANTS", "MUTANTS", "Mutant"]

INVARIANTS = {
    "one_result": "at most one committed result per run, step and item",
    "fences_grow": "fences strictly grow",
    "nothing_lost": "no acknowledged run, and no committed result, is lost",
    "terminal_states": "terminal states never change",
    "dependencies": "no step starts before its dependencies allow it",
    "not_run_again": "committed steps are not run again on resume or after a crash",
    "nothing_after_cancel": "nothing starts after a cancel was acknowledged",
    "one_key_one_run": "the same idempotency key never gives two runs",
    "told_when_durable": "nothing is shown, sent or begun before it is durable",
    "every_run_ends": "every acknowledged run goes on after a crash, and ends",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One broken guard. `tests` are pytest arguments, at least one test of which must fail."""

    name: str
    invariant: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied_to(self, source: str) -> str:
        """The module with the guard broken. Raises ValueError when the guard is not there exactly once."""
        if source.count(self.old) != 1:
            raise ValueError(f"mutant {self.name}: {self.file} holds its text {source.count(self.old)} times, not once")
        return source.replace(self.old, self.new)


WINDOWS = "tests/simulation/test_crash_windows.py"
LOG_HISTORIES = "tests/simulation/test_log.py"
STORE_HISTORIES = "tests/simulation/test_store.py"
STATEFUL = "tests/unit/engine/test_stateful.py"
GUARDS = "tests/unit/engine/test_guards.py"
RESUME = "tests/unit/engine/test_resume.py"
RECOVERY = "tests/unit/engine/test_recovery.py"
SPINE = "tests/unit/engine/test_spine.py"
JOINS = "tests/unit/engine/test_joins.py"
SCHEDULING = "tests/unit/engine/test_scheduling.py"
SERVICE = "tests/unit/run_store/test_service.py"

ATTEMPTS = "pipelines/engine/attempts.py"
ENGINE = "pipelines/engine/engine.py"
STATE = "pipelines/engine/state.py"
STATES = "pipelines/engine/states.py"
KERNEL = "pipelines/run_store/kernel.py"
STORE = "pipelines/run_store/service.py"
CLAIMING = "cluster/log/claiming.py"
SEGMENTS = "cluster/log/segment_writer.py"
SNAPSHOTS = "cluster/log/snapshots.py"


def window(number: int) -> str:
    """Selects the tests of one crash window by name."""
    return f"{WINDOWS}::test_window_{number}"


MUTANTS = (
    # ---- one result ----
    Mutant(
        name="stale-fence",
        invariant="one_result",
        file=ENGINE,
        old="if unit is not None and fence and unit.fence == fence else None",
        new="if unit is not None and fence and unit.fence else None",
        tests=(f"{window(1)}_a_replaced_attempt_hands_in_late",),
    ),
    Mutant(
        name="stale-fence-by-the-books",
        invariant="one_result",
        file=ENGINE,
        old="if unit is not None and fence and unit.fence == fence else None",
        new="if unit is not None and fence and unit.fence else None",
        tests=(f"{SPINE}::test_a_late_result_of_an_older_attempt_is_refused",),
    ),
    Mutant(
        name="state-takes-any-fence",
        invariant="one_result",
        file=STATE,
        old="        if unit.fence != fence:\n",
        new="        if False:\n",
        tests=(f"{GUARDS}::test_a_result_with_another_fence_is_no_fact",),
    ),
    Mutant(
        name="second-result-of-a-step",
        invariant="one_result",
        file=STATES,
        old="    _S.SUCCESS: {},\n",
        new='    _S.SUCCESS: {"StepSucceeded": _S.SUCCESS},\n',
        tests=(f"{GUARDS}::test_a_second_result_is_no_fact",),
    ),
    Mutant(
        name="second-result-of-an-item",
        invariant="one_result",
        file=STATES,
        old="    _I.SUCCESS: {},\n",
        new='    _I.SUCCESS: {"ItemSucceeded": _I.SUCCESS},\n',
        tests=(f"{GUARDS}::test_a_second_result_is_no_fact",),
    ),
    Mutant(
        name="second-result-of-a-round",
        invariant="one_result",
        file=STATE,
        old="        if e.iteration != step.iteration:\n",
        new="        if False:\n",
        tests=(f"{GUARDS}::test_a_second_result_is_no_fact",),
    ),
    Mutant(
        name="zombie-believes-it-wrote",
        invariant="one_result",
        file=SEGMENTS,
        old="            if present != data:\n                raise _fenced(self._prefix, key, present)\n",
        new="",
        tests=(f"{window(1)}_its_owner_was_only_asleep",),
    ),
    Mutant(
        name="zombie-believes-it-wrote-in-histories",
        invariant="one_result",
        file=SEGMENTS,
        old="            if present != data:\n                raise _fenced(self._prefix, key, present)\n",
        new="",
        tests=(f"{LOG_HISTORIES}::test_acknowledged_records_survive",),
    ),
    Mutant(
        name="file-create-overwrites",
        invariant="one_result",
        file="cluster/storage/file_bucket.py",
        old="                os.link(name, path)\n",
        new="                os.replace(name, path)\n",
        tests=("tests/contract/test_bucket.py::test_create_does_not_overwrite[file]",),
    ),
    Mutant(
        name="memory-create-overwrites",
        invariant="one_result",
        file="cluster/storage/testing.py",
        old="        if check_key(key) in self.objects:\n",
        new="        if False:\n",
        tests=("tests/contract/test_bucket.py::test_create_does_not_overwrite[memory]",),
    ),
    # ---- fences ----
    Mutant(
        name="fence-repeats",
        invariant="fences_grow",
        file=STATE,
        old="        if e.fence <= self.fence:\n",
        new="        if False:\n",
        tests=(f"{GUARDS}::test_a_fence_that_does_not_grow_is_no_fact",),
    ),
    Mutant(
        name="fence-forgotten-by-replay",
        invariant="fences_grow",
        file=STATE,
        old="        self.fence = e.fence\n",
        new="        self.fence = max(self.fence, e.fence if e.attempt == 1 else 0)\n",
        tests=(STATEFUL,),
    ),
    Mutant(
        name="fence-not-in-snapshot",
        invariant="fences_grow",
        file=STATE,
        old='        self.fence = int(raw["fence"])\n',
        new="        self.fence = 0\n",
        tests=(STATEFUL,),
    ),
    Mutant(
        name="fence-not-in-snapshot-in-histories",
        invariant="fences_grow",
        file=STATE,
        old='        self.fence = int(raw["fence"])\n',
        new="        self.fence = 0\n",
        tests=(f"{STORE_HISTORIES}::test_every_acknowledged_run_ends_and_nothing_is_committed_twice",),
    ),
    Mutant(
        name="epoch-does-not-grow",
        invariant="fences_grow",
        file=CLAIMING,
        old="            epoch=history.epoch + 1,\n",
        new="            epoch=max(history.epoch, 1),\n",
        tests=(f"{LOG_HISTORIES}::test_acknowledged_records_survive",),
    ),
    Mutant(
        name="lost-race-not-noticed",
        invariant="fences_grow",
        file=CLAIMING,
        old="                if await patient_get(bucket, segment_key(prefix, seq)) != data:\n",
        new="                if await patient_get(bucket, segment_key(prefix, seq)) == b'':\n",
        tests=(f"{LOG_HISTORIES}::test_acknowledged_records_survive",),
    ),
    Mutant(
        name="claim-over-collected-number",
        invariant="fences_grow",
        file=CLAIMING,
        old="            return False\n        history.add(data",
        new="            pass\n        history.add(data",
        tests=(f"{LOG_HISTORIES}::test_acknowledged_records_survive",),
    ),
    # ---- nothing lost ----
    Mutant(
        name="acknowledged-before-written",
        invariant="nothing_lost",
        file=STORE,
        old="        view = kernel.engine.summary(run_id)\n"
        "        await kernel.wait(future, timeout_s=self.settings.durable_timeout_s)\n",
        new="        view = kernel.engine.summary(run_id)\n",
        tests=(f"{SERVICE}::test_a_submit_is_acknowledged_only_when_it_is_durable",),
    ),
    Mutant(
        name="acknowledged-before-written-in-histories",
        invariant="nothing_lost",
        file=STORE,
        old="        view = kernel.engine.summary(run_id)\n"
        "        await kernel.wait(future, timeout_s=self.settings.durable_timeout_s)\n",
        new="        view = kernel.engine.summary(run_id)\n",
        tests=(f"{STORE_HISTORIES}::test_every_acknowledged_run_ends_and_nothing_is_committed_twice",),
    ),
    Mutant(
        name="unanswered-write-is-given-up",
        invariant="nothing_lost",
        file=SEGMENTS,
        old="                unsure = True\n",
        new="                return\n",
        tests=(f"{LOG_HISTORIES}::test_acknowledged_records_survive",),
    ),
    Mutant(
        name="collects-too-much",
        invariant="nothing_lost",
        file=SNAPSHOTS,
        old="                await self._collect(previous, fences)\n",
        new="                await self._collect(tip.seq, fences)\n",
        tests=(f"{LOG_HISTORIES}::test_acknowledged_records_survive",),
    ),
    Mutant(
        name="collects-epochs",
        invariant="nothing_lost",
        file=SNAPSHOTS,
        old="            if seq <= up_to and seq not in fences:\n",
        new="            if seq <= up_to:\n",
        tests=(f"{LOG_HISTORIES}::test_acknowledged_records_survive",),
    ),
    Mutant(
        name="snapshot-covers-too-much",
        invariant="nothing_lost",
        file=SNAPSHOTS,
        old="            position=position,\n",
        new="            position=tip.position,\n",
        tests=(f"{LOG_HISTORIES}::test_acknowledged_records_survive",),
    ),
    Mutant(
        name="replay-repeats-the-snapshot",
        invariant="one_result",
        file="cluster/log/reading.py",
        old="            skip = max(0, start - segment.first)\n",
        new="            skip = 0\n",
        tests=(f"{LOG_HISTORIES}::test_acknowledged_records_survive",),
    ),
    Mutant(
        name="recovery-drops-tail",
        invariant="nothing_lost",
        file="cluster/log/reading.py",
        old="        for segment in self.segments:\n            skip",
        new="        for segment in self.segments[:-2]:\n            skip",
        tests=(f"{window(2)}_after_the_checkpoint_before_the_acknowledgement",),
    ),
    Mutant(
        name="missing-segment-passed-over",
        invariant="nothing_lost",
        file="cluster/log/reading.py",
        old="        if seq != expected:\n",
        new="        if False:\n",
        tests=("tests/contract/test_log.py::test_a_missing_segment_is_named[memory]",),
    ),
    Mutant(
        name="snapshot-before-its-state",
        invariant="nothing_lost",
        file="pipelines/run_store/housekeeping.py",
        old="        body = kernel.snapshot_bytes()\n        position = kernel.log.assigned\n",
        new="        body = kernel.snapshot_bytes()\n        await kernel.wait_all(timeout_s=60)\n"
        "        position = kernel.log.assigned\n",
        tests=(f"{STORE_HISTORIES}::test_every_acknowledged_run_ends_and_nothing_is_committed_twice",),
    ),
    Mutant(
        name="archive-not-logged",
        invariant="nothing_lost",
        file="pipelines/run_store/housekeeping.py",
        old="        kernel.commit(Decision(), [Archived(segments=tuple(segments))])\n",
        new="        kernel.memory.archive.add(segments)\n",
        tests=(f"{SERVICE}::test_finished_runs_leave_memory_and_stay_readable",),
    ),
    Mutant(
        name="others-archives-are-orphans",
        invariant="nothing_lost",
        file="pipelines/run_store/archive.py",
        old=" and _epoch(key) < self.epoch]",
        new="]",
        tests=(f"{STORE_HISTORIES}::test_every_acknowledged_run_ends_and_nothing_is_committed_twice",),
    ),
    Mutant(
        name="replaced-owner-misses-archives",
        invariant="nothing_lost",
        file="pipelines/run_store/reading.py",
        old="        except ObjectNotFound:\n            await self.kernel.wait_all(",
        new="        except ObjectNotFound:\n            dict(",
        tests=("tests/unit/run_store/test_lists.py",),
    ),
    Mutant(
        name="list-misses-what-is-archived",
        invariant="nothing_lost",
        file="pipelines/run_store/reading.py",
        old="        return await self.kernel.memory.archive.row(run_id)\n",
        new="        return None\n",
        tests=("tests/unit/run_store/test_lists.py",),
    ),
    Mutant(
        name="evicted-while-it-runs",
        invariant="nothing_lost",
        file=STATE,
        old="        run = self.run(e.run_id)\n        if not run.ended:\n",
        new="        run = self.run(e.run_id)\n        if False:\n",
        tests=(f"{GUARDS}::test_an_open_run_does_not_leave_memory",),
    ),
    Mutant(
        name="goes-on-after-a-failed-write",
        invariant="nothing_lost",
        file=KERNEL,
        old="            self.fatal(error)\n            return\n        self.metrics.appended",
        new="            pass\n        self.metrics.appended",
        tests=(f"{window(1)}_its_owner_was_only_asleep",),
    ),
    # ---- terminal states ----
    Mutant(
        name="attempts-outlive-their-step",
        invariant="terminal_states",
        file=STATE,
        old="        unit.fence, unit.retry_at = 0, 0.0\n",
        new="        unit.retry_at = 0.0\n",
        tests=(STATEFUL,),
    ),
    Mutant(
        name="cancel-after-the-end",
        invariant="terminal_states",
        file="pipelines/engine/ending.py",
        old='    """End a run as CANCELLED: nothing of it starts any more, what runs is told to stop."""\n'
        "    if run.ended:\n        return\n",
        new='    """End a run as CANCELLED: nothing of it starts any more, what runs is told to stop."""\n',
        tests=(f"{GUARDS}::test_a_nested_run_that_has_ended_is_not_cancelled_with_its_siblings",),
    ),
    Mutant(
        name="success-may-be-cancelled",
        invariant="terminal_states",
        file=STATES,
        old="    _R.SUCCESS: {},\n",
        new='    _R.SUCCESS: {"RunCancelled": _R.CANCELLED},\n',
        tests=(f"{GUARDS}::test_an_ended_run_meets_no_other_end",),
    ),
    Mutant(
        name="success-with-open-steps",
        invariant="terminal_states",
        file=STATE,
        old="        if run.open:\n            raise InvalidTransition(",
        new="        if False:\n            raise InvalidTransition(",
        tests=(f"{GUARDS}::test_a_run_with_open_steps_has_not_succeeded",),
    ),
    Mutant(
        name="running-run-is-resumed",
        invariant="terminal_states",
        file="pipelines/engine/resume.py",
        old="    if run.state not in (RunState.FAILED, RunState.CANCELLED):\n",
        new="    if False:\n",
        tests=(f"{RESUME}::test_only_failed_or_cancelled_runs_are_resumed",),
    ),
    # ---- dependencies ----
    Mutant(
        name="all-success-fires-early",
        invariant="dependencies",
        file="pipelines/engine/steps.py",
        old="        if step.ok == total:\n",
        new="        if step.ok or not total:\n",
        tests=(JOINS,),
    ),
    Mutant(
        name="all-success-fires-early-in-histories",
        invariant="dependencies",
        file="pipelines/engine/steps.py",
        old="        if step.ok == total:\n",
        new="        if step.ok or not total:\n",
        tests=(f"{STORE_HISTORIES}::test_every_acknowledged_run_ends_and_nothing_is_committed_twice",),
    ),
    Mutant(
        name="all-done-fires-early",
        invariant="dependencies",
        file="pipelines/engine/steps.py",
        old="        return FIRE if step.done == total else WAIT\n",
        new="        return FIRE if step.done else WAIT\n",
        tests=(JOINS,),
    ),
    Mutant(
        name="handler-without-its-failure",
        invariant="dependencies",
        file="pipelines/engine/steps.py",
        old="        if not step.jumped:\n",
        new="        if False:\n",
        tests=(JOINS,),
    ),
    Mutant(
        name="failure-counts-as-success",
        invariant="dependencies",
        file="pipelines/engine/runs.py",
        old='        waiting.ok += ended.handled == "continue"\n',
        new="        waiting.ok += 1\n",
        tests=(JOINS,),
    ),
    Mutant(
        name="retry-before-its-time",
        invariant="dependencies",
        file="pipelines/engine/steps.py",
        old="        if step.delay_until > core.now:\n",
        new="        if False:\n",
        tests=(f"{JOINS}::test_a_delay_holds_no_slot",),
    ),
    # ---- not run again ----
    Mutant(
        name="resume-forgets-results",
        invariant="not_run_again",
        file=STATE,
        old="            if before is not None and planned.id in kept:\n",
        new="            if False:\n",
        tests=(f"{RESUME}::test_resume_runs_only_what_had_not_succeeded",),
    ),
    Mutant(
        name="resume-keeps-nothing",
        invariant="not_run_again",
        file="pipelines/engine/resume.py",
        old="        elif committed:\n            kept[step_id] = None\n",
        new="        elif committed:\n            again[step_id] = 'again'\n",
        tests=(f"{STORE_HISTORIES}::test_every_acknowledged_run_ends_and_nothing_is_committed_twice",),
    ),
    Mutant(
        name="resume-forgets-items",
        invariant="not_run_again",
        file=STATE,
        old="                _keep_progress(step, before)\n",
        new="                pass\n",
        tests=(f"{RESUME}::test_foreach_keeps_its_finished_items",),
    ),
    Mutant(
        name="fix-keeps-what-was-edited",
        invariant="not_run_again",
        file="pipelines/engine/resume.py",
        old="        if changed is not None:\n            again[step_id] = changed\n",
        new="        if False:\n            again[step_id] = changed\n",
        tests=(f"{RESUME}::test_an_edited_committed_step_and_all_that_read_it_run_again",),
    ),
    Mutant(
        name="items-queued-again-after-a-crash",
        invariant="not_run_again",
        file="pipelines/engine/steps.py",
        old="if state == _PENDING and i not in items.units)\n",
        new="if i not in items.units)\n",
        tests=(f"{RESUME}::test_foreach_keeps_its_finished_items",),
    ),
    Mutant(
        name="key-per-attempt",
        invariant="not_run_again",
        file="pipelines/engine/render.py",
        old='    key = f"{run.id}:{planned.id}"\n',
        new='    key = f"{run.id}:{planned.id}:{fence}"\n',
        tests=(f"{window(1)}_after_the_work_before_the_checkpoint",),
    ),
    # ---- every run ends ----
    Mutant(
        name="lost-attempt-stays-lost",
        invariant="every_run_ends",
        file="pipelines/engine/recover.py",
        old='        unit.waiting = "value"\n',
        new="        pass\n",
        tests=(f"{window(1)}_after_the_work_before_the_checkpoint",),
    ),
    Mutant(
        name="recovery-forgets-followers",
        invariant="every_run_ends",
        file="pipelines/engine/recover.py",
        old="                step.unit.waiting = None\n            touched.append((run, index))\n",
        new="                step.unit.waiting = None\n",
        tests=(f"{window(2)}_with_a_full_house",),
    ),
    Mutant(
        name="recovery-forgets-the-end",
        invariant="every_run_ends",
        file="pipelines/engine/recover.py",
        old="        touched.append((run, RUN_OUTPUT))\n",
        new="        pass\n",
        tests=(f"{SCHEDULING}::test_a_run_output_may_need_a_spilled_value",),
    ),
    Mutant(
        name="recovery-forgets-delays",
        invariant="every_run_ends",
        file="pipelines/engine/recover.py",
        old='                core.timer(step.delay_until, "delay", run, index)\n',
        new="                pass\n",
        tests=(f"{RECOVERY}::test_a_delay",),
    ),
    Mutant(
        name="recovery-forgets-retries",
        invariant="every_run_ends",
        file="pipelines/engine/recover.py",
        old='        core.timer(unit.retry_at, "retry", run, index, item, unit.retry_at)\n',
        new="        pass\n",
        tests=(f"{RECOVERY}::test_a_wait_before_another_try",),
    ),
    Mutant(
        name="recovery-forgets-step-timeouts",
        invariant="every_run_ends",
        file="pipelines/engine/recover.py",
        old="            arm_step_timeout(core, run, index, planned, step)\n",
        new="",
        tests=(f"{RECOVERY}::test_a_steps_timeout",),
    ),
    Mutant(
        name="recovery-forgets-nested-ends",
        invariant="every_run_ends",
        file="pipelines/engine/recover.py",
        old="            core.children_ended.append(child)\n",
        new="            pass\n",
        tests=(f"{RECOVERY}::test_a_nested_run_that_ended_at_the_crash",),
    ),
    Mutant(
        name="lock-not-given-on",
        invariant="every_run_ends",
        file="pipelines/engine/schedule.py",
        old="        self.locks[lock_key].held -= 1\n            self._wake(lock_key)\n",
        new="        self.locks[lock_key].held -= 1\n",
        tests=(f"{STORE_HISTORIES}::test_every_acknowledged_run_ends_and_nothing_is_committed_twice",),
    ),
    # ---- nothing after cancel ----
    Mutant(
        name="cancelled-start-is-begun",
        invariant="nothing_after_cancel",
        file="pipelines/run_store/attempts.py",
        old="        if attempt.fence in self._refused:\n",
        new="        if False:\n",
        tests=(f"{STORE_HISTORIES}::test_every_acknowledged_run_ends_and_nothing_is_committed_twice",),
    ),
    Mutant(
        name="queue-outlives-its-run",
        invariant="nothing_after_cancel",
        file="pipelines/engine/schedule.py",
        old="        if self.run.ended or self.unit.waiting is None:\n",
        new="        if False:\n",
        tests=(STATEFUL,),
    ),
    Mutant(
        name="late-answer-trusted",
        invariant="nothing_after_cancel",
        file=SEGMENTS,
        old="            if unsure or self._clock.monotonic() - began > self._options.slow_write_s:\n",
        new="            if unsure:\n",
        tests=(f"{window(2)}_the_owner_learns_of_its_checkpoint_too_late",),
    ),
    Mutant(
        name="repeated-write-trusted",
        invariant="nothing_after_cancel",
        file=SEGMENTS,
        old="            if unsure or self._clock.monotonic() - began > self._options.slow_write_s:\n",
        new="            if self._clock.monotonic() - began > self._options.slow_write_s:\n",
        tests=(f"{WINDOWS}::test_window_2_a_repeated_write_is_as_doubtful",),
    ),
    Mutant(
        name="cancel-told-before-written",
        invariant="nothing_after_cancel",
        file=STORE,
        old='reason=reason or "cancelled by request")\n        )\n'
        "        await kernel.wait(future, timeout_s=self.settings.durable_timeout_s)\n"
        "        return await self.get(run_id)\n",
        new='reason=reason or "cancelled by request")\n        )\n'
        "        return self._finish_view(kernel.engine.view(run_id))\n",
        tests=(f"{STORE_HISTORIES}::test_every_acknowledged_run_ends_and_nothing_is_committed_twice",),
    ),
    Mutant(
        name="idle-zombie-stays",
        invariant="nothing_after_cancel",
        file=KERNEL,
        old="                    await log.check_owner()\n",
        new="                    pass\n",
        tests=(f"{WINDOWS}::test_an_owner_that_writes_nothing_learns_that_it_was_replaced",),
    ),
    # ---- told when durable ----
    Mutant(
        name="act-before-durable",
        invariant="told_when_durable",
        file=KERNEL,
        old="        future.add_done_callback(lambda done: self._durable(done, shown, commands, began))\n",
        new="        self._perform(commands)\n"
        "        future.add_done_callback(lambda done: self._durable(done, shown, (), began))\n",
        tests=(f"{window(1)}_after_the_work_before_the_checkpoint",),
    ),
    Mutant(
        name="show-before-durable",
        invariant="told_when_durable",
        file="pipelines/run_store/reading.py",
        old="            await kernel.wait(entry.last, timeout_s=self.settings.read_timeout_s)\n",
        new="",
        tests=(f"{window(1)}_after_the_work_before_the_checkpoint",),
    ),
    Mutant(
        name="events-before-durable",
        invariant="told_when_durable",
        file="pipelines/run_store/history.py",
        old="        end = min(self.shown, start + limit - 1)\n",
        new="        end = min(self.last, start + limit - 1)\n",
        tests=(f"{STORE_HISTORIES}::test_every_acknowledged_run_ends_and_nothing_is_committed_twice",),
    ),
    Mutant(
        name="message-before-durable",
        invariant="told_when_durable",
        file="pipelines/run_store/housekeeping.py",
        old="                    await self._committed()\n                    self._start(due)\n",
        new="                    self._start(due)\n",
        tests=(f"{STORE_HISTORIES}::test_every_acknowledged_run_ends_and_nothing_is_committed_twice",),
    ),
    Mutant(
        name="webhook-id-per-try",
        invariant="told_when_durable",
        file="pipelines/run_store/webhooks.py",
        old='            "webhook-id": delivery.id,\n',
        new='            "webhook-id": f"{delivery.id}-{now}",\n',
        tests=(f"{window(3)}_of_a_message",),
    ),
    Mutant(
        name="webhook-try-not-logged",
        invariant="told_when_durable",
        file="pipelines/run_store/housekeeping.py",
        old="        kernel.commit(Decision(), [WebhookAttempted(attempted=fact)], ",
        new="        dict(handled=kernel.memory.outbox.handle(fact), ",
        tests=(f"{window(3)}_of_a_message",),
    ),
    # ---- one key, one run ----
    Mutant(
        name="key-not-logged",
        invariant="one_key_one_run",
        file="pipelines/run_store/memory.py",
        old='            self.keys.accept(key, entry.meta["body"], event.run_id, at=event.at)\n',
        new="            pass\n",
        tests=(f"{window(3)}_after_the_acknowledgement_was_lost",),
    ),
    Mutant(
        name="keys-not-in-snapshot",
        invariant="one_key_one_run",
        file="pipelines/run_store/memory.py",
        old='        self.keys.restore(state["keys"])\n',
        new="",
        tests=(f"{window(3)}_after_the_acknowledgement_was_lost",),
    ),
    Mutant(
        name="key-takes-any-body",
        invariant="one_key_one_run",
        file="pipelines/run_store/idempotency.py",
        old="        if found[0] != body:\n",
        new="        if False:\n",
        tests=(f"{window(3)}_after_the_acknowledgement_was_lost",),
    ),
    Mutant(
        name="key-taken-too-late",
        invariant="one_key_one_run",
        file="pipelines/run_store/service.py",
        old="            keys.begin(key, body)\n",
        new="            pass\n",
        tests=(f"{window(3)}_a_repeat_that_overtakes",),
    ),
    Mutant(
        name="run-id-not-looked-up",
        invariant="one_key_one_run",
        file=STORE,
        old="        known = await self._known_run(run_id)\n",
        new="        known = None\n",
        tests=(f"{window(3)}_a_repeat_with_the_same_run_id",),
    ),
    Mutant(
        name="own-write-is-a-rival",
        invariant="one_key_one_run",
        file=SEGMENTS,
        old="                        present = await self._bucket.get(key)\n",
        new="                        present = None\n",
        tests=(f"{WINDOWS}::test_the_buckets_lost_answer_doubles_nothing",),
    ),
    Mutant(
        name="keys-in-any-shard",
        invariant="one_key_one_run",
        file="serve_apps/http/runs_gateway.py",
        old="        if key:\n            shard = shard_of_key(",
        new="        if False:\n            shard = shard_of_key(",
        tests=("tests/unit/http/test_runs_gateway.py",),
    ),
)
"""In the order of the invariants."""
