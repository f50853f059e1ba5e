/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file with the process id: locked for as long as the process lives, so that a second instance notices;
 * removed at the end, unless another file has taken its place meanwhile.
 */
#pragma once

#include "base/error.h"

typedef struct Pidfile {
    char *path; /* absolute */
    int fd;
} Pidfile;

#define PIDFILE_INIT ((Pidfile){.fd = -1})

/* The lock belongs to the process: not before the last fork. */
int pidfile_create(const char *path, Pidfile *pidfile, Error *err) MUST_CHECK;
/* Fine for one that was never created. */
void pidfile_remove(Pidfile *pidfile);
