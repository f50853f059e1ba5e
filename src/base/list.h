/* SPDX-License-Identifier: Apache-2.0 */
/* Intrusive doubly linked list. A List is both head and link; a link that is on no list points at itself or
 * is {0}. */
#pragma once

#include "base/macros.h"

typedef struct List {
    struct List *next, *prev;
} List;

#define LIST_INIT(head) ((List){&(head), &(head)})
/* The object that embeds the link. */
#define LIST_ENTRY(link, type, member) CONTAINER_OF(link, type, member)
#define LIST_FOREACH(link, head) for (List *link = (head)->next; link != (head); link = link->next)
/* Allows removing the current link. */
#define LIST_FOREACH_SAFE(link, head)                                          \
    for (List *link = (head)->next, *link##_next = link->next; link != (head); \
         link = link##_next, link##_next = link->next)

static inline void list_init(List *head)
{
    head->next = head->prev = head;
}

static inline bool list_empty(const List *head)
{
    return head->next == head;
}

static inline void list_insert_between(List *link, List *before, List *after)
{
    link->prev = before;
    link->next = after;
    before->next = link;
    after->prev = link;
}

static inline void list_append(List *head, List *link)
{
    list_insert_between(link, head->prev, head);
}

static inline void list_prepend(List *head, List *link)
{
    list_insert_between(link, head, head->next);
}

/* Removes a link from its list; safe for a link on no list. */
static inline void list_remove(List *link)
{
    if (!link->next)
        return;
    link->prev->next = link->next;
    link->next->prev = link->prev;
    list_init(link);
}

/* Removes and returns the first link, or NULL. */
static inline List *list_pop(List *head)
{
    List *first = head->next;

    if (first == head)
        return NULL;
    list_remove(first);
    return first;
}
