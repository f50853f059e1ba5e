/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Transactions: actions of which all are made or none. Each kind of action is one TransactionKind table,
 * found by name through a generated registry (`const TransactionKind transaction_kind_NAME`, dashes as
 * underscores, NAME as in its branch of TransactionAction); commands that do the same alone call
 * transaction_run_one().
 *
 * One transaction runs at a time, on the main loop. All actions are prepared in order; then all are
 * committed, or, after a failure, those that were prepared are aborted, both from the last to the first.
 */
#pragma once

#include "block/node.h"

typedef struct TransactionAction TransactionAction; /* generated */

typedef struct TransactionKind {
    size_t state_size; /* of the action's own state, zeroed */
    bool starts_job;   /* so that completion-mode=grouped has a meaning */
    /* Does all that can fail, so that it can be undone; on failure it has undone its own part already. May
     * wait. */
    int (*prepare)(void *state, const TransactionAction *action, Error *err);
    /* After prepare has succeeded, one of them. Both may wait; NULL: nothing to do. */
    void (*commit)(void *state);
    void (*abort)(void *state);
    /* Last of all, also when prepare has failed. May be NULL. */
    void (*clean)(void *state);
} TransactionKind;

/* Carries out one action as a transaction of its own. */
int transaction_run_one(const TransactionAction *action, Error *err) MUST_CHECK;

/*
 * For actions: a node that stays and whose requests are at rest from one to the other, so that the changes of
 * one transaction, also on several nodes, are made between the same two requests.
 */
int transaction_hold_node(Node *node, Edge **ret_hold, Error *err) MUST_CHECK;
/* NULL is fine. */
void transaction_release_node(Edge *hold);
/* The action that is being prepared is the only one: it need not happen at the same moment as others. */
bool transaction_is_single(void);
