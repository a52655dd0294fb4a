"""Guards of the run store and its gateway: what is told, kept and begun, and when."""

from __future__ import annotations

from tests.mutations.mutant import KERNEL, SERVICE, STORE, STORE_HISTORIES, WINDOWS, Mutant, window

__all__ = ["STORE_MUTANTS"]

STORE_MUTANTS = (
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
        name="snapshot-before-its-state",
        invariant="nothing_lost",
        file="pipelines/run_store/housekeeping.py",
        old="        cut = kernel.cut()\n        position = kernel.log.assigned\n",
        new="        cut = kernel.cut()\n        await kernel.wait_all(timeout_s=60)\n"
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
        name="goes-on-after-a-failed-write",
        invariant="nothing_lost",
        file=KERNEL,
        old="            self.fatal(error)\n            return\n        self.metrics.appended",
        new="            pass\n        self.metrics.appended",
        tests=(f"{window(1)}_its_owner_was_only_asleep",),
    ),
    Mutant(
        name="cancelled-start-is-begun",
        invariant="nothing_after_cancel",
        file="pipelines/run_store/attempts.py",
        old="        if attempt.fence in self._refused:\n",
        new="        if False:\n",
        tests=(f"{WINDOWS}::test_a_start_that_is_cancelled_before_it_is_durable_is_not_begun",),
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
        name="keys-in-any-shard",
        invariant="one_key_one_run",
        file="serve_apps/http/runs_gateway.py",
        old="        if key:\n            shard = shard_of_key(",
        new="        if False:\n            shard = shard_of_key(",
        tests=("tests/unit/http/test_runs_gateway.py",),
    ),
)
