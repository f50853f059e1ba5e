/* SPDX-License-Identifier: Apache-2.0 */
/* Transactions (transaction.h): the command, the order of preparing, committing and undoing, and the action
 * abort. */
#include "block/transaction.h"

#include "base/mem.h"
#include "block/block-priv.h"
#include "generated/commands.h"

#include <errno.h>

const TransactionKind *transaction_kind_find(const char *name); /* generated */

typedef struct Step {
    const TransactionKind *kind;
    void *state;
} Step;

/* Sessions of the monitor run beside each other, and what was prepared must not change before it is
 * committed. */
static CoMutex running;
static bool single; /* the one that runs has one action */

static int prepare(Step *step, const TransactionAction *action, Error *err)
{
    step->kind = transaction_kind_find(transaction_action_kind_name(action->type));
    step->state = mem_zalloc(step->kind->state_size + 1);
    return step->kind->prepare(step->state, action, err);
}

static void finish(const Step *step, bool commit)
{
    void (*fn)(void *state) = commit ? step->kind->commit : step->kind->abort;

    if (fn)
        fn(step->state);
}

static void clean(const Step *step)
{
    if (step->kind->clean)
        step->kind->clean(step->state);
    free(step->state);
}

static int run(TransactionAction *const *actions, size_t count, Error *err)
{
    AUTO_FREE Step *steps = mem_zalloc((count + 1) * sizeof(*steps));
    size_t begun = 0;
    int r = 0;

    co_mutex_lock_shielded(&running);
    single = count == 1;
    while (r == 0 && begun < count) {
        r = prepare(&steps[begun], actions[begun], err);
        begun++;
    }
    for (size_t i = r < 0 ? begun - 1 : begun; i-- > 0;)
        finish(&steps[i], r == 0);
    while (begun-- > 0)
        clean(&steps[begun]);
    co_mutex_unlock(&running);
    return r;
}

int transaction_run_one(const TransactionAction *action, Error *err)
{
    TransactionAction *const actions[] = {(TransactionAction *)action};

    return run(actions, 1, err);
}

static int check_grouped(const TransactionActionList *actions, Error *err)
{
    for (size_t i = 0; i < actions->count; i++) {
        const char *name = transaction_action_kind_name(actions->items[i]->type);

        if (!transaction_kind_find(name)->starts_job)
            return err_set(err, -EINVAL,
                "Action '%s' does not support transaction property completion-mode = grouped", name);
    }
    return 0;
}

int qmp_transaction(const TransactionArg *arg, Error *err)
{
    const TransactionProperties *properties = arg->properties;
    int r = 0;

    if (properties && properties->has_completion_mode &&
        properties->completion_mode == ACTION_COMPLETION_MODE_GROUPED)
        r = check_grouped(&arg->actions, err);
    return r < 0 ? r : run(arg->actions.items, arg->actions.count, err);
}

/* ---- For actions ---- */

bool transaction_is_single(void)
{
    return single;
}

static char *describe_hold(void *opaque)
{
    return str_dup("a transaction");
}

int transaction_hold_node(Node *node, Edge **ret_hold, Error *err)
{
    static const EdgeUser user = {.describe = describe_hold};
    int r = edge_open(node, &user, NULL, 0, PERM_ALL, ret_hold, err);

    if (r == 0)
        node_drain_begin(node);
    return r;
}

void transaction_release_node(Edge *hold)
{
    if (!hold)
        return;
    node_drain_end(edge_node(hold));
    edge_close(hold);
}

/* ---- The action that fails ---- */

static int abort_prepare(void *state, const TransactionAction *action, Error *err)
{
    return err_set(err, -ECANCELED, "Transaction aborted using Abort action");
}

const TransactionKind transaction_kind_abort = {.prepare = abort_prepare};
