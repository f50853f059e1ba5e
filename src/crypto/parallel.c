/* SPDX-License-Identifier: Apache-2.0 */
#include "crypto/parallel.h"

#include "loop/loop.h"

#define PARTS_MAX 8u

typedef struct Part {
    const SectorCipher *cipher;
    uint64_t number;
    uint8_t *dst; /* NULL: decrypt in place */
    IoSlice slice;
} Part;

static int part_work(void *arg)
{
    const Part *part = arg;

    if (part->dst)
        sector_cipher_encrypt_slice(part->cipher, part->number, part->dst, part->slice);
    else
        sector_cipher_decrypt_slice(part->cipher, part->number, part->slice);
    return 0;
}

static void part_run(void *arg)
{
    loop_work(part_work, arg);
}

static void split(Part whole, unsigned count)
{
    size_t bytes = align_up(div_round_up(whole.slice.bytes, count), CIPHER_SECTOR_BYTES_MAX);
    Part parts[PARTS_MAX];
    CoGroup group;
    unsigned i = 0;

    co_group_init(&group);
    for (size_t done = 0; done < whole.slice.bytes; done += bytes, i++) {
        parts[i] = whole;
        parts[i].number += done / CIPHER_IV_SECTOR_BYTES;
        parts[i].dst = whole.dst ? whole.dst + done : NULL;
        parts[i].slice = io_slice_part(whole.slice, done, MIN(bytes, whole.slice.bytes - done));
        if (done + bytes < whole.slice.bytes)
            co_start(&group, "crypt", part_run, &parts[i]);
        else
            part_run(&parts[i]);
    }
    co_group_join(&group);
}

static void run(Part whole)
{
    size_t piece = sector_cipher_piece(whole.cipher);

    if (whole.slice.bytes <= piece)
        part_work(&whole);
    else
        split(whole, (unsigned)MIN(div_round_up(whole.slice.bytes, piece), (uint64_t)PARTS_MAX));
}

void parallel_encrypt(const SectorCipher *cipher, uint64_t number, uint8_t *dst, IoSlice src)
{
    run((Part){cipher, number, dst, src});
}

void parallel_decrypt(const SectorCipher *cipher, uint64_t number, IoSlice data)
{
    run((Part){cipher, number, NULL, data});
}
