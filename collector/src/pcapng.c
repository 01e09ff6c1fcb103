#include "pcapng.h"

struct builder {
    uint8_t *at;
    size_t capacity;
    size_t used;
};

static bool put(struct builder *builder, const void *bytes, size_t length)
{
    const size_t padded = (length + 3) & ~(size_t)3;
    if (builder->capacity - builder->used < padded)
        return false;
    memset(builder->at + builder->used, 0, padded);
    if (length)
        memcpy(builder->at + builder->used, bytes, length);
    builder->used += padded;
    return true;
}

static bool put_u32(struct builder *builder, uint32_t value) { return put(builder, &value, sizeof value); }

static bool put_option(struct builder *builder, uint16_t code, const void *value, size_t length)
{
    const uint16_t header[2] = {code, (uint16_t)length};
    return put(builder, header, sizeof header) && put(builder, value, length);
}

static bool put_text(struct builder *builder, uint16_t code, const char *text)
{
    const size_t length = strnlen(text, PCAPNG_MAX_TEXT);
    return length == 0 || put_option(builder, code, text, length);
}

static bool put_count(struct builder *builder, uint16_t code, uint64_t count)
{
    return put_option(builder, code, &count, sizeof count);
}

static bool put_time(struct builder *builder, uint16_t code, uint64_t time_ns)
{
    const uint32_t halves[2] = {(uint32_t)(time_ns >> 32), (uint32_t)time_ns};
    return put_option(builder, code, halves, sizeof halves);
}

/* Closes options and block, and fills in the length at its head. */
static size_t finish(struct builder *builder, bool complete)
{
    const uint32_t length = (uint32_t)builder->used + 8;
    if (!complete || !put_u32(builder, 0) || !put_u32(builder, length))
        return 0;
    memcpy(builder->at + 4, &length, sizeof length);
    return builder->used;
}

size_t pcapng_put_shb(uint8_t *at, size_t capacity, const char *hardware, const char *os, const char *application)
{
    struct builder builder = {at, capacity, 0};
    const uint16_t version[2] = {1, 0};
    const int64_t section_length = -1;
    return finish(&builder, put_u32(&builder, PCAPNG_SHB) && put_u32(&builder, 0) && put_u32(&builder, 0x1A2B3C4D) &&
                                put(&builder, version, sizeof version) && put(&builder, &section_length, sizeof section_length) &&
                                put_text(&builder, 2, hardware) && put_text(&builder, 3, os) && put_text(&builder, 4, application));
}

size_t pcapng_put_idb(uint8_t *at, size_t capacity, const char *name, const char *description, uint32_t snap_length)
{
    struct builder builder = {at, capacity, 0};
    const uint16_t ethernet[2] = {1, 0};
    const uint8_t nanoseconds = 9;
    return finish(&builder, put_u32(&builder, PCAPNG_IDB) && put_u32(&builder, 0) && put(&builder, ethernet, sizeof ethernet) &&
                                put_u32(&builder, snap_length) && put_text(&builder, 2, name) && put_text(&builder, 3, description) &&
                                put_option(&builder, 9, &nanoseconds, sizeof nanoseconds));
}

size_t pcapng_put_isb(uint8_t *at, size_t capacity, uint32_t interface, uint64_t time_ns, const struct pcapng_statistics *statistics)
{
    struct builder builder = {at, capacity, 0};
    return finish(&builder, put_u32(&builder, PCAPNG_ISB) && put_u32(&builder, 0) && put_u32(&builder, interface) &&
                                put_u32(&builder, (uint32_t)(time_ns >> 32)) && put_u32(&builder, (uint32_t)time_ns) &&
                                put_time(&builder, 2, statistics->start_ns) && put_time(&builder, 3, statistics->end_ns) &&
                                put_count(&builder, 4, statistics->interface_received) &&
                                put_count(&builder, 5, statistics->interface_dropped) &&
                                put_count(&builder, 6, statistics->accepted) &&
                                put_count(&builder, 7, statistics->system_dropped) && put_count(&builder, 8, statistics->delivered));
}

static inline uint32_t u32_at(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static bool read_epb(struct pcapng_block *block)
{
    if (block->length < PCAPNG_EPB_HEADER + 4)
        return false;
    block->interface = u32_at(block->bytes + 8);
    block->time_ns = (uint64_t)u32_at(block->bytes + 12) << 32 | u32_at(block->bytes + 16);
    block->captured = u32_at(block->bytes + 20);
    block->original = u32_at(block->bytes + 24);
    block->frame = block->bytes + PCAPNG_EPB_HEADER;
    return block->captured <= block->length - PCAPNG_EPB_HEADER - 4;
}

enum pcapng_next pcapng_read(const uint8_t *at, size_t available, struct pcapng_block *block)
{
    if (available < 8)
        return PCAPNG_PARTIAL;
    memset(block, 0, sizeof *block);
    block->bytes = at;
    block->type = u32_at(at);
    block->length = u32_at(at + 4);
    if (block->length < 12 || block->length % 4 || block->length > PCAPNG_MAX_BLOCK)
        return PCAPNG_BROKEN;
    if (block->length > available)
        return PCAPNG_PARTIAL;
    if (u32_at(at + block->length - 4) != block->length)
        return PCAPNG_BROKEN;
    switch (block->type) {
    case PCAPNG_EPB:
        return read_epb(block) ? PCAPNG_BLOCK : PCAPNG_BROKEN;
    case PCAPNG_ISB:
        if (block->length < 24)
            return PCAPNG_BROKEN;
        block->interface = u32_at(at + 8);
        return PCAPNG_BLOCK;
    case PCAPNG_SHB:
        return block->length >= 28 && u32_at(at + 8) == 0x1A2B3C4D ? PCAPNG_BLOCK : PCAPNG_BROKEN;
    case PCAPNG_IDB:
        return block->length >= 20 ? PCAPNG_BLOCK : PCAPNG_BROKEN;
    default:
        return PCAPNG_BLOCK;
    }
}
