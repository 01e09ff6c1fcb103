/* Parsers of what arrives: pure functions over (buffer, length), bounds-checked, no allocation, no state. */
#ifndef VTAP_WIRE_H
#define VTAP_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum encapsulation {
    ENCAPSULATION_GRE = 0,   /* RFC 2784 and RFC 2890, transparent Ethernet; alone or in UDP (RFC 8086) */
    ENCAPSULATION_VXLAN = 1, /* RFC 7348 */
    ENCAPSULATION_ERSPAN = 2 /* ERSPAN type II, draft-foschiano-erspan */
};

/* `frame` points into the parsed buffer. `key` is the GRE key, the VXLAN network identifier or the ERSPAN index. */
struct wire_copy {
    const uint8_t *frame;
    uint32_t frame_length;
    uint32_t key;
    uint32_t sequence;
    uint16_t session; /* ERSPAN only */
    uint8_t encapsulation;
    bool has_sequence;
};

#define TRAILER_LENGTH 20
#define TRAILER_MAGIC 0x76544150u
#define TRAILER_VERSION 1

enum trailer_flag { TRAILER_SNAPPED = 1, TRAILER_TRUNCATED = 2 };

/* docs/architecture.md, "The wire to our collector". */
struct wire_trailer {
    uint64_t tai_ns;
    uint32_t original_length;
    uint16_t flags;
};

/* `buffer` starts with the GRE header. False: not a GRE packet that carries Ethernet with a key, nor ERSPAN II. */
bool wire_parse_gre(const uint8_t *buffer, size_t length, struct wire_copy *copy);

/* `buffer` starts with the VXLAN header. */
bool wire_parse_vxlan(const uint8_t *buffer, size_t length, struct wire_copy *copy);

/* `buffer` starts with an IPv4 header, as raw sockets deliver; on success the payload of the protocol `protocol`. */
bool wire_skip_ipv4(const uint8_t *buffer, size_t length, uint8_t protocol, const uint8_t **payload, size_t *payload_length);

/* Takes the trailer off the end of `copy`; false where it is missing, of another version, or denies the frame's length. */
bool wire_take_trailer(struct wire_copy *copy, struct wire_trailer *trailer);

#endif
