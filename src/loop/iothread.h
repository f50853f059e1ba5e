/* SPDX-License-Identifier: Apache-2.0 */
/* The user-creatable objects `iothread` (a loop with its own thread) and `main-loop` (settings of the main
 * loop). */
#pragma once

#include "loop/loop.h"
#include "schema/object.h"

/*
 * The loop of an iothread object, or NULL when the object is NULL or of another type. Whoever uses the loop
 * holds a reference to the object for as long; the thread ends with the last reference.
 */
Loop *iothread_loop(Object *object);
