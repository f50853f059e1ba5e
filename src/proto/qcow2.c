/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/qcow2.h"

#include "base/limits.h"
#include "base/mem.h"

#include <inttypes.h>

#define SNAPSHOT_HEADER_BYTES 40u

typedef struct FeatureName {
    uint8_t kind; /* 0 incompatible, 1 compatible, 2 autoclear */
    uint8_t bit;
    const char *name;
} FeatureName;

static const FeatureName feature_names[] = {
    {0, 0, "dirty bit"},
    {0, 1, "corrupt bit"},
    {0, 2, "external data file"},
    {0, 3, "compression type"},
    {0, 4, "extended L2 entries"},
    {1, 0, "lazy refcounts"},
    {2, 0, "bitmaps"},
    {2, 1, "raw external data"},
};

/* An entry of the feature name table: kind, bit, and 46 bytes of name. */
#define FEATURE_ENTRY_BYTES 48u
#define FEATURE_NAME_BYTES 46u

/* ---- Header ---- */

static void decode_v2(const uint8_t *data, Qcow2Header *header)
{
    *header = (Qcow2Header){
        .version = get_be32(data + 4),
        .backing_offset = get_be64(data + 8),
        .backing_bytes = get_be32(data + 16),
        .cluster_bits = get_be32(data + 20),
        .size = get_be64(data + QCOW2_AT_SIZE),
        .crypt_method = get_be32(data + 32),
        .l1_entries = get_be32(data + QCOW2_AT_L1_ENTRIES),
        .l1_offset = get_be64(data + 40),
        .rt_offset = get_be64(data + QCOW2_AT_RT_OFFSET),
        .rt_clusters = get_be32(data + 56),
        .snapshots = get_be32(data + 60),
        .snapshots_offset = get_be64(data + 64),
        .refcount_order = 4,
        .header_bytes = QCOW2_HEADER_V2_BYTES,
    };
}

static int decode_v3(const uint8_t *data, size_t bytes, Qcow2Header *header, Error *err)
{
    if (bytes < QCOW2_HEADER_V3_BYTES)
        return err_set(err, -EINVAL, "qcow2 header too short");
    header->incompatible = get_be64(data + QCOW2_AT_INCOMPATIBLE);
    header->compatible = get_be64(data + 80);
    header->autoclear = get_be64(data + QCOW2_AT_AUTOCLEAR);
    header->refcount_order = get_be32(data + 96);
    header->header_bytes = get_be32(data + 100);
    if (header->header_bytes < QCOW2_HEADER_V3_BYTES)
        return err_set(err, -EINVAL, "qcow2 header too short");
    if (header->header_bytes > 1u << header->cluster_bits)
        return err_set(err, -EINVAL, "qcow2 header exceeds cluster size");
    if (header->header_bytes > QCOW2_HEADER_V3_BYTES && bytes > QCOW2_HEADER_V3_BYTES)
        header->compression_type = data[QCOW2_HEADER_V3_BYTES];
    return 0;
}

static int check_compression(const Qcow2Header *header, Error *err)
{
    bool flagged = header->incompatible & QCOW2_INCOMPATIBLE_COMPRESSION;

    if (header->compression_type > QCOW2_COMPRESSION_ZSTD)
        return err_set(err, -ENOTSUP, "qcow2: unknown compression type: %u", header->compression_type);
    if (flagged && header->compression_type == QCOW2_COMPRESSION_ZLIB)
        return err_set(err, -EINVAL, "qcow2: Compression type incompatible feature bit must not be set");
    if (!flagged && header->compression_type != QCOW2_COMPRESSION_ZLIB)
        return err_set(err, -EINVAL, "qcow2: Compression type incompatible feature bit must be set");
    return 0;
}

static int check_backing(const Qcow2Header *header, Error *err)
{
    uint64_t cluster = UINT64_C(1) << header->cluster_bits;

    if (header->backing_offset > cluster)
        return err_set(err, -EINVAL, "Invalid backing file offset");
    if (header->backing_offset &&
        header->backing_bytes > MIN((uint64_t)QCOW2_MAX_NAME_BYTES, cluster - header->backing_offset))
        return err_set(err, -EINVAL, "Backing file name too long");
    return 0;
}

int qcow2_header_decode(const uint8_t *data, size_t bytes, Qcow2Header *ret_header, Error *err)
{
    Qcow2Header header;
    int r;

    if (bytes < QCOW2_HEADER_V2_BYTES || get_be32(data) != QCOW2_MAGIC)
        return err_set(err, -EINVAL, "Image is not in qcow2 format");
    decode_v2(data, &header);
    if (header.version < 2 || header.version > 3)
        return err_set(err, -ENOTSUP, "Unsupported qcow2 version %" PRIu32, header.version);
    if (header.cluster_bits < QCOW2_MIN_CLUSTER_BITS || header.cluster_bits > QCOW2_MAX_CLUSTER_BITS)
        return err_set(err, -EINVAL, "Unsupported cluster size: 2^%" PRIu32, header.cluster_bits);
    if (header.version >= 3) {
        r = decode_v3(data, bytes, &header, err);
        if (r < 0)
            return r;
    }
    r = check_compression(&header, err);
    if (r == 0)
        r = check_backing(&header, err);
    if (r < 0)
        return r;
    *ret_header = header;
    return 0;
}

/* A table must start at a cluster and end where file offsets do. */
static int check_table(const Qcow2Header *header, uint64_t offset, uint64_t entries, uint64_t entry_bytes,
    uint64_t max_bytes, const char *name, Error *err)
{
    if (entries > max_bytes / entry_bytes)
        return err_set(err, -EFBIG, "%s too large", name);
    if (offset > INT64_MAX - entries * entry_bytes ||
        !is_aligned(offset, UINT64_C(1) << header->cluster_bits))
        return err_set(err, -EINVAL, "%s offset invalid", name);
    return 0;
}

uint64_t qcow2_l1_entries_for(const Qcow2Header *header, uint64_t size)
{
    unsigned entry_bits = header->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2 ? 4 : 3;
    unsigned shift = 2 * header->cluster_bits - entry_bits;

    return (size >> shift) + ((size & ((UINT64_C(1) << shift) - 1)) != 0);
}

int qcow2_header_check(const Qcow2Header *header, Error *err)
{
    uint64_t l1_needed;
    int r;

    if (header->refcount_order > QCOW2_MAX_REFCOUNT_ORDER)
        return err_set(err, -EINVAL, "Reference count entry width too large; may not exceed 64 bits");
    if (header->crypt_method > QCOW2_CRYPT_LUKS)
        return err_set(err, -EINVAL, "Unsupported encryption method %" PRId32, (int32_t)header->crypt_method);
    if ((header->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2) &&
        header->cluster_bits < QCOW2_MIN_EXTENDED_CLUSTER_BITS)
        return err_set(err, -EINVAL, "Unsupported subcluster size: %u",
            (1u << header->cluster_bits) / QCOW2_SUBCLUSTERS);
    if (header->rt_clusters == 0)
        return err_set(err, -EINVAL, "Image does not contain a reference count table");
    r = check_table(header, header->rt_offset, header->rt_clusters, UINT64_C(1) << header->cluster_bits,
        QCOW2_MAX_REFTABLE_BYTES, "Reference count table", err);
    if (r < 0)
        return r;
    r = check_table(header, header->snapshots_offset, header->snapshots, SNAPSHOT_HEADER_BYTES,
        (uint64_t)SNAPSHOT_HEADER_BYTES * QCOW2_MAX_SNAPSHOTS, "Snapshot table", err);
    if (r < 0)
        return r;
    r = check_table(
        header, header->l1_offset, header->l1_entries, 8, QCOW2_MAX_L1_BYTES, "Active L1 table", err);
    if (r < 0)
        return r;
    l1_needed = qcow2_l1_entries_for(header, header->size);
    if (l1_needed > INT32_MAX || header->size > LIMIT_NODE_BYTES)
        return err_set(err, -EFBIG, "Image is too big");
    if (header->l1_entries < l1_needed)
        return err_set(err, -EINVAL, "L1 table is too small");
    return 0;
}

static void encode_v3(const Qcow2Header *header, uint8_t *out)
{
    memset(out + QCOW2_HEADER_V2_BYTES, 0, QCOW2_HEADER_BYTES - QCOW2_HEADER_V2_BYTES);
    put_be64(out + QCOW2_AT_INCOMPATIBLE, header->incompatible);
    put_be64(out + 80, header->compatible);
    put_be64(out + QCOW2_AT_AUTOCLEAR, header->autoclear);
    put_be32(out + 96, header->refcount_order);
    put_be32(out + 100, QCOW2_HEADER_BYTES);
    out[QCOW2_HEADER_V3_BYTES] = header->compression_type;
}

size_t qcow2_header_encode(const Qcow2Header *header, uint8_t *out)
{
    put_be32(out, QCOW2_MAGIC);
    put_be32(out + 4, header->version);
    put_be64(out + 8, header->backing_offset);
    put_be32(out + 16, header->backing_bytes);
    put_be32(out + 20, header->cluster_bits);
    put_be64(out + QCOW2_AT_SIZE, header->size);
    put_be32(out + 32, header->crypt_method);
    put_be32(out + QCOW2_AT_L1_ENTRIES, header->l1_entries);
    put_be64(out + 40, header->l1_offset);
    put_be64(out + QCOW2_AT_RT_OFFSET, header->rt_offset);
    put_be32(out + 56, header->rt_clusters);
    put_be32(out + 60, header->snapshots);
    put_be64(out + 64, header->snapshots_offset);
    if (header->version < 3)
        return QCOW2_HEADER_V2_BYTES;
    encode_v3(header, out);
    return QCOW2_HEADER_BYTES;
}

/* ---- Features ---- */

static void append_feature(StrBuf *list, const char *name, size_t max)
{
    if (list->length)
        strbuf_append(list, ", ");
    strbuf_append_bytes(list, name, strnlen(name, max));
}

/* Takes the bits that the image's own table names out of *unknown. */
static void name_features(const uint8_t *table, size_t bytes, uint64_t *unknown, StrBuf *list)
{
    for (size_t at = 0; at + FEATURE_ENTRY_BYTES <= bytes; at += FEATURE_ENTRY_BYTES) {
        uint8_t bit = table[at + 1];

        if (table[at] != 0 || bit > 63 || !(*unknown & UINT64_C(1) << bit))
            continue;
        *unknown &= ~(UINT64_C(1) << bit);
        append_feature(list, (const char *)table + at + 2, FEATURE_NAME_BYTES);
    }
}

int qcow2_features_check(const Qcow2Header *header, const uint8_t *extensions, size_t bytes, Error *err)
{
    uint64_t unknown = header->incompatible & ~(uint64_t)QCOW2_INCOMPATIBLE_KNOWN;
    AUTO_STRBUF StrBuf list = {0};
    AUTO_ERROR Error ignored = ERROR_INIT;
    Qcow2Extension extension;
    size_t offset = 0;

    if (!unknown)
        return 0;
    while (qcow2_extension_next(extensions, bytes, &offset, &extension, &ignored) == 1)
        if (extension.magic == QCOW2_EXT_FEATURE_NAMES)
            name_features(extension.data, extension.bytes, &unknown, &list);
    if (unknown)
        strbuf_printf(&list, "%sUnknown incompatible feature: %" PRIx64, list.length ? ", " : "", unknown);
    return err_set(err, -ENOTSUP, "Unsupported qcow2 feature(s): %s", list.text);
}

size_t qcow2_feature_names_encode(uint8_t *out)
{
    memset(out, 0, sizeof(feature_names) / sizeof(feature_names[0]) * FEATURE_ENTRY_BYTES);
    for (size_t i = 0; i < ARRAY_SIZE(feature_names); i++) {
        uint8_t *entry = out + i * FEATURE_ENTRY_BYTES;

        entry[0] = feature_names[i].kind;
        entry[1] = feature_names[i].bit;
        memcpy(entry + 2, feature_names[i].name, strlen(feature_names[i].name));
    }
    return ARRAY_SIZE(feature_names) * FEATURE_ENTRY_BYTES;
}

/* ---- Extensions ---- */

int qcow2_extension_next(
    const uint8_t *area, size_t area_bytes, size_t *offset, Qcow2Extension *ret, Error *err)
{
    Qcow2Extension extension;
    size_t at = *offset;

    if (at >= area_bytes)
        return 0;
    if (area_bytes - at < 8)
        return err_set(err, -EINVAL, "Header extension too large");
    extension.magic = get_be32(area + at);
    extension.bytes = get_be32(area + at + 4);
    if (extension.magic == QCOW2_EXT_END)
        return 0;
    at += 8;
    if (extension.bytes > area_bytes - at)
        return err_set(err, -EINVAL, "Header extension too large");
    extension.data = area + at;
    at += extension.bytes;
    *offset = at + (-extension.bytes & 7);
    *ret = extension;
    return 1;
}

size_t qcow2_extension_encode(uint8_t *out, size_t room, uint32_t magic, const void *data, uint32_t bytes)
{
    size_t total = 8 + align_up(bytes, 8);

    if (total > room)
        return 0;
    memset(out, 0, total);
    put_be32(out, magic);
    put_be32(out + 4, bytes);
    if (bytes)
        memcpy(out + 8, data, bytes);
    return total;
}

/* ---- Refcounts ---- */

uint64_t qcow2_refcount_get(const uint8_t *block, unsigned order, uint32_t index)
{
    switch (order) {
    case 3:
        return block[index];
    case 4:
        return get_be16(block + 2 * (size_t)index);
    case 5:
        return get_be32(block + 4 * (size_t)index);
    case 6:
        return get_be64(block + 8 * (size_t)index);
    default: {
        /* Widths below a byte: the first entry is in the least significant bits. */
        unsigned width = 1u << order, per_byte = 8u >> order;

        return block[index / per_byte] >> (index % per_byte * width) & ((1u << width) - 1);
    }
    }
}

void qcow2_refcount_set(uint8_t *block, unsigned order, uint32_t index, uint64_t value)
{
    switch (order) {
    case 3:
        block[index] = (uint8_t)value;
        return;
    case 4:
        put_be16(block + 2 * (size_t)index, (uint16_t)value);
        return;
    case 5:
        put_be32(block + 4 * (size_t)index, (uint32_t)value);
        return;
    case 6:
        put_be64(block + 8 * (size_t)index, value);
        return;
    default: {
        unsigned width = 1u << order, per_byte = 8u >> order;
        unsigned shift = index % per_byte * width, mask = ((1u << width) - 1) << shift;
        uint8_t *byte = block + index / per_byte;

        *byte = (uint8_t)((*byte & ~mask) | ((unsigned)value << shift & mask));
        return;
    }
    }
}

uint32_t qcow2_refcount_find_free(const uint8_t *block, unsigned order, uint32_t from, uint32_t to)
{
    while (from < to && qcow2_refcount_get(block, order, from))
        from++;
    return from;
}

/* ---- L2 entries ---- */

Qcow2Type qcow2_entry_type(uint64_t entry, bool has_zero, bool data_file)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK;

    if (entry & QCOW2_COMPRESSED)
        return QCOW2_TYPE_COMPRESSED;
    if (entry & QCOW2_ZERO) {
        if (!has_zero)
            return QCOW2_TYPE_INVALID;
        return offset || (data_file && (entry & QCOW2_COPIED)) ? QCOW2_TYPE_ZERO_HOST : QCOW2_TYPE_ZERO;
    }
    /* In an external data file, the first guest cluster lies at offset 0; its refcount bit tells it from a
     * hole. */
    return offset || (data_file && (entry & QCOW2_COPIED)) ? QCOW2_TYPE_NORMAL : QCOW2_TYPE_UNALLOCATED;
}

Qcow2Type qcow2_subcluster_type(uint64_t entry, uint64_t subclusters, unsigned index, bool data_file)
{
    bool zero = subclusters & QCOW2_SUB_ZERO(index), allocated = subclusters & QCOW2_SUB_ALLOCATED(index);
    bool host = (entry & QCOW2_OFFSET_MASK) || (data_file && (entry & QCOW2_COPIED));

    if (entry & QCOW2_COMPRESSED)
        return QCOW2_TYPE_COMPRESSED;
    if ((zero && allocated) || (allocated && !host))
        return QCOW2_TYPE_INVALID;
    if (zero)
        return host ? QCOW2_TYPE_ZERO_HOST : QCOW2_TYPE_ZERO;
    if (allocated)
        return QCOW2_TYPE_NORMAL;
    return host ? QCOW2_TYPE_UNALLOCATED_HOST : QCOW2_TYPE_UNALLOCATED;
}

/* The offset takes the low x bits, the number of additional sectors the bits from x to 61. */
static unsigned compressed_offset_bits(unsigned cluster_bits)
{
    return 62 - (cluster_bits - 8);
}

Qcow2Compressed qcow2_compressed_decode(uint64_t entry, unsigned cluster_bits)
{
    unsigned bits = compressed_offset_bits(cluster_bits);
    uint64_t offset = entry & ((UINT64_C(1) << bits) - 1);
    uint64_t sectors = (entry >> bits & ((UINT64_C(1) << (cluster_bits - 8)) - 1)) + 1;

    return (Qcow2Compressed){.offset = offset, .bytes = (uint32_t)(sectors * 512 - offset % 512)};
}

int qcow2_compressed_encode(uint64_t offset, uint32_t bytes, unsigned cluster_bits, uint64_t *ret_entry)
{
    unsigned bits = compressed_offset_bits(cluster_bits);
    uint64_t sectors = (offset + bytes - 1) / 512 - offset / 512;

    if (offset >> MIN(bits, 56u) || sectors >> (cluster_bits - 8))
        return -ERANGE;
    *ret_entry = QCOW2_COMPRESSED | sectors << bits | offset;
    return 0;
}
