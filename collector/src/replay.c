/* Files on disk, read again: joined into one section for a reader, or summed up. */
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define READ_BYTES (2u << 20)

typedef bool visit(void *context, const struct pcapng_block *block);

/* Calls `visit` for each whole block until it returns false; returns the bytes of the blocks visited. */
static uint64_t walk(int fd, visit *visitor, void *context)
{
    uint8_t *buffer = malloc(READ_BYTES);
    uint64_t offset = 0;
    bool more = buffer != NULL;
    while (more) {
        const ssize_t got = pread(fd, buffer, READ_BYTES, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        size_t used = 0;
        struct pcapng_block block;
        while (more && got > 0 && pcapng_read(buffer + used, (size_t)got - used, &block) == PCAPNG_BLOCK) {
            used += block.length;
            more = visitor(context, &block);
        }
        offset += used;
        if (used == 0)
            break;
    }
    free(buffer);
    return offset;
}

/* The interfaces of the section that is being read, as the outlet numbers them. */
struct replay {
    struct outlet outlet;
    uint32_t *numbers;
    uint32_t count, capacity;
};

static uint64_t identity(const struct pcapng_block *block)
{
    uint64_t hash = 14695981039346656037ull; /* FNV-1a: equal descriptions are the same interface in another file */
    for (uint32_t index = 0; index < block->length; index++)
        hash = (hash ^ block->bytes[index]) * 1099511628211ull;
    return hash;
}

static bool add_interface(struct replay *replay, const struct pcapng_block *block)
{
    if (replay->count == replay->capacity) {
        const uint32_t capacity = replay->capacity ? replay->capacity * 2 : 8;
        uint32_t *grown = realloc(replay->numbers, capacity * sizeof *grown);
        if (!grown)
            return false;
        replay->numbers = grown;
        replay->capacity = capacity;
    }
    replay->numbers[replay->count++] = outlet_interface(&replay->outlet, identity(block), block->bytes, block->length);
    return true;
}

static bool replay_block(void *context, const struct pcapng_block *block)
{
    struct replay *replay = context;
    const uint32_t number = block->interface < replay->count ? replay->numbers[block->interface] : UINT32_MAX;
    switch (block->type) {
    case PCAPNG_SHB:
        replay->count = 0;
        break;
    case PCAPNG_IDB:
        return add_interface(replay, block);
    case PCAPNG_EPB:
        outlet_packet(&replay->outlet, number, block);
        break;
    case PCAPNG_ISB:
        outlet_statistics(&replay->outlet, number, block);
        break;
    default:
        break;
    }
    return !outlet_done(&replay->outlet);
}

int vtc_replay(const int *files, size_t count, const struct vtc_select *select, int out, struct vtc_consumer_counts *counts, char *error,
               size_t error_size)
{
    struct replay replay = {0};
    const struct vtc_config config = {.hardware = "", .os = "", .application = "vtap-collector"};
    if (outlet_init(&replay.outlet, out, select, error, error_size) < 0)
        return -1;
    outlet_header(&replay.outlet, &config);
    for (size_t index = 0; index < count && !outlet_done(&replay.outlet); index++) {
        replay.count = 0;
        if (replay.outlet.interfaces >= OUTLET_INTERFACES)
            outlet_header(&replay.outlet, &config);
        walk(files[index], replay_block, &replay);
    }
    outlet_flush(&replay.outlet);
    *counts = replay.outlet.counts;
    counts->finished = !replay.outlet.broken;
    free(replay.numbers);
    outlet_destroy(&replay.outlet);
    return 0;
}

static bool sum_block(void *context, const struct pcapng_block *block)
{
    struct vtc_file_summary *summary = context;
    if (block->type != PCAPNG_EPB)
        return true;
    if (summary->packets++ == 0)
        summary->first_ns = summary->last_ns = block->time_ns;
    if (block->time_ns < summary->first_ns)
        summary->first_ns = block->time_ns;
    if (block->time_ns > summary->last_ns)
        summary->last_ns = block->time_ns;
    return true;
}

int vtc_scan(int fd, struct vtc_file_summary *summary)
{
    *summary = (struct vtc_file_summary){0};
    summary->whole_bytes = walk(fd, sum_block, summary);
    return 0;
}
