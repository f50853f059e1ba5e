/* SPDX-License-Identifier: Apache-2.0 */
/* A tree: an L1 table and all that it reaches, which is either the image's own or a snapshot's. Changes of
 * its refcounts and flags are part of a shadow. */
#pragma once

#include "drivers/qcow2/shadow.h"

typedef struct Tree {
    Shadow *s;
    uint64_t *l1; /* host order */
    uint64_t entries;
    uint8_t *table; /* the L2 table that is looked at */
} Tree;

typedef enum TreeChange { TREE_REF, TREE_UNREF } TreeChange;

/* Reads a table of so many entries; there is room for at least room. tree_done() follows in any case. */
int tree_read(Tree *tree, Shadow *s, uint64_t offset, uint64_t entries, uint64_t room) MUST_CHECK;
int tree_of_image(Tree *tree, Shadow *s) MUST_CHECK;
void tree_done(Tree *tree);
/* Counts all that the tree reaches, but not its L1 table, once more or once less. */
int tree_change(Tree *tree, TreeChange change) MUST_CHECK;
/* Makes it what the image's own tree has to be: with the right COPIED flags. Tables whose flags change move.
 * twin, or NULL, is the same tree and follows, without flags. */
int tree_mark(Tree *tree, Tree *twin) MUST_CHECK;
/* Writes the L1 table to a new place; kind as for shadow_alloc(). */
int tree_write(const Tree *tree, unsigned kind, uint64_t *ret_offset) MUST_CHECK;
/* Commits the shadow, with this tree as the image's own. */
int tree_commit(Tree *tree) MUST_CHECK;
