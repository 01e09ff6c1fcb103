/* pcapng blocks (draft-ietf-opsawg-pcapng), built into and read from plain buffers, in host byte order. */
#ifndef VTAP_PCAPNG_H
#define VTAP_PCAPNG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum pcapng_block_type {
    PCAPNG_SHB = 0x0A0D0D0A,
    PCAPNG_IDB = 1,
    PCAPNG_ISB = 5,
    PCAPNG_EPB = 6
};

enum pcapng_direction { PCAPNG_INBOUND = 1, PCAPNG_OUTBOUND = 2 }; /* as epb_flags has them */

#define PCAPNG_EPB_HEADER 28u
#define PCAPNG_EPB_TRAILER 16u /* epb_flags, end of options, length */
#define PCAPNG_MAX_BLOCK (1u << 20)
#define PCAPNG_MAX_TEXT 1024u

static inline uint32_t pcapng_padded(uint32_t length) { return (length + 3) & ~3u; }

static inline uint32_t pcapng_epb_length(uint32_t captured)
{
    return PCAPNG_EPB_HEADER + pcapng_padded(captured) + PCAPNG_EPB_TRAILER;
}

/* Writes one Enhanced Packet Block of pcapng_epb_length(captured) bytes. `time_ns` since the epoch, UTC. */
static inline void pcapng_put_epb(uint8_t *at, uint32_t interface, uint64_t time_ns, const uint8_t *frame, uint32_t captured,
                                  uint32_t original, uint32_t direction)
{
    const uint32_t padded = pcapng_padded(captured);
    const uint32_t length = PCAPNG_EPB_HEADER + padded + PCAPNG_EPB_TRAILER;
    const uint32_t header[7] = {PCAPNG_EPB, length, interface, (uint32_t)(time_ns >> 32), (uint32_t)time_ns, captured, original};
    const uint32_t trailer[4] = {2 | 4 << 16, direction, 0, length};
    memcpy(at, header, sizeof header);
    memset(at + PCAPNG_EPB_HEADER + padded - (padded ? 4 : 0), 0, padded ? 4 : 0);
    memcpy(at + PCAPNG_EPB_HEADER, frame, captured);
    memcpy(at + PCAPNG_EPB_HEADER + padded, trailer, sizeof trailer);
}

/* The next three return the block's length, 0 where `capacity` is too small. Texts are UTF-8, cut at PCAPNG_MAX_TEXT. */
size_t pcapng_put_shb(uint8_t *at, size_t capacity, const char *hardware, const char *os, const char *application);
size_t pcapng_put_idb(uint8_t *at, size_t capacity, const char *name, const char *description, uint32_t snap_length);

/* received by the interface = `received`; each of the others is what was left of it one stage further on.
 * isb_ifrecv − isb_ifdrop = isb_filteraccept; isb_filteraccept − isb_osdrop = isb_usrdeliv. */
struct pcapng_statistics {
    uint64_t start_ns, end_ns;
    uint64_t interface_received, interface_dropped, accepted, system_dropped, delivered;
};
size_t pcapng_put_isb(uint8_t *at, size_t capacity, uint32_t interface, uint64_t time_ns, const struct pcapng_statistics *statistics);

/* One block of a buffer. `captured` and what follows are set for Enhanced Packet Blocks only. */
struct pcapng_block {
    const uint8_t *bytes;
    uint32_t type;
    uint32_t length;
    uint32_t interface; /* EPB and ISB */
    uint64_t time_ns;   /* EPB */
    const uint8_t *frame;
    uint32_t captured;
    uint32_t original;
};

enum pcapng_next { PCAPNG_BLOCK, PCAPNG_PARTIAL, PCAPNG_BROKEN };

/* Reads the block at `at`. PARTIAL: the buffer ends inside it. BROKEN: what is there is no block as we write them. */
enum pcapng_next pcapng_read(const uint8_t *at, size_t available, struct pcapng_block *block);

#endif
