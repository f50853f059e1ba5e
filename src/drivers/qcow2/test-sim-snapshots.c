/* SPDX-License-Identifier: Apache-2.0 */
/* Internal snapshots in the simulator: made, removed, gone back to. See test-sim.h. */
#include "base/mem.h"
#include "drivers/qcow2/test-sim.h"

static void set_state(SimSnapshot *s, Stored state)
{
    s->state = state;
    if (state == STORED_NOT)
        free(TAKE(s->values));
}

void snapshots_forget(Sim *sim)
{
    for (unsigned i = 0; i < MAX_SNAPSHOTS; i++)
        set_state(&sim->snapshots[i], STORED_NOT);
}

bool snapshots_any(const Sim *sim)
{
    for (unsigned i = 0; i < MAX_SNAPSHOTS; i++)
        if (sim->snapshots[i].state != STORED_NOT)
            return true;
    return false;
}

static bool is_listed(const SnapshotInfoList *list, const char *name)
{
    for (size_t i = 0; i < list->count; i++)
        if (str_eq(list->items[i]->name, name))
            return true;
    return false;
}

void snapshots_compare(Sim *sim, bool settled)
{
    CLEANUP(snapshot_info_list_done) SnapshotInfoList list = {0};
    AUTO_ERROR Error err = ERROR_INIT;
    size_t count = 0;

    if (driver_qcow2.snapshots->list(sim->node, &list, &err) < 0) {
        if (sim->shape.data_file || sim->crashed)
            return;
        sim_fail("the snapshots cannot be listed: %s", err.message);
    }
    for (unsigned i = 0; i < MAX_SNAPSHOTS; i++) {
        SimSnapshot *s = &sim->snapshots[i];
        bool listed = s->state != STORED_NOT && is_listed(&list, s->name);

        if (s->state == STORED_SURE && !listed)
            sim_fail("snapshot %.10s is lost", s->name);
        if (s->state == STORED_MAYBE && settled)
            set_state(s, listed ? STORED_SURE : STORED_NOT);
        count += listed;
    }
    if (count != list.count)
        sim_fail("there are %zu snapshots, not %zu", list.count, count);
}

/* ---- Operations ---- */

static void create(Sim *sim, SimSnapshot *s)
{
    SnapshotInfo info = {.name = s->name};
    AUTO_ERROR Error err = ERROR_INIT;
    AUTO_FREE uint64_t *values = NULL;
    int r;

    read_all(sim); /* so that it is known what is kept */
    values = model_values(&sim->model);
    if (!values || sim->crashed)
        return;
    draw_name(sim, s->name);
    s->values = TAKE(values);
    s->size = sim->model.size;
    s->state = STORED_MAYBE;
    r = driver_qcow2.snapshots->create(sim->node, &info, &err);
    say("create snapshot %.10s: %d", s->name, r);
    if (r == 0)
        set_state(s, STORED_SURE);
    /* Narrow refcounts cannot count so many. */
    if (r < 0 && mem_failures == sim->failures && sim->shape.refcount_bits < 8)
        set_state(s, STORED_NOT);
    else
        expect(sim, "making a snapshot", r);
}

static void drop(Sim *sim, SimSnapshot *s)
{
    AUTO_ERROR Error err = ERROR_INIT;
    int r;

    s->state = STORED_MAYBE;
    r = driver_qcow2.snapshots->remove(sim->node, NULL, s->name, &err);
    say("remove snapshot %.10s: %d", s->name, r);
    if (r == 0)
        set_state(s, STORED_NOT);
    expect(sim, "removing a snapshot", r);
}

static void apply(Sim *sim, SimSnapshot *s)
{
    AUTO_ERROR Error err = ERROR_INIT;
    Change change;
    int r;

    if (bitmaps_any(sim)) /* the graph refuses that */
        return;
    if (sim->model.other_size != sim->model.size && flush(sim) < 0)
        return;
    if (!model_begin_apply(&sim->model, s->size, s->values, &change))
        return;
    say("apply snapshot %.10s, %" PRIu64, s->name, change.start);
    r = driver_qcow2.snapshots->apply(sim->node, NULL, s->name, &err);
    say("  apply: %d", r);
    model_end(&sim->model, &change, r == 0, r == 0);
    if (!sim->crashed)
        model_end_resize(&sim->model, r == 0);
    if (r == 0 || mem_failures != sim->failures || sim->shape.refcount_bits >= 8)
        expect(sim, "applying a snapshot", r);
}

void op_snapshot(Sim *sim)
{
    SimSnapshot *s = &sim->snapshots[test_random(MAX_SNAPSHOTS)];

    if (sim->shape.data_file || s->state == STORED_MAYBE)
        return;
    if (s->state == STORED_NOT)
        create(sim, s);
    else if (one_in(2))
        drop(sim, s);
    else
        apply(sim, s);
}
