#include "wire.h"

#include <string.h>

#define GRE_CHECKSUM 0x8000u
#define GRE_KEY 0x2000u
#define GRE_SEQUENCE 0x1000u
#define GRE_KNOWN (GRE_CHECKSUM | GRE_KEY | GRE_SEQUENCE)
#define ETHERTYPE_TEB 0x6558u
#define ETHERTYPE_ERSPAN2 0x88BEu
#define ERSPAN_HEADER 8u
#define VXLAN_HEADER 8u
#define VXLAN_VNI_VALID 0x08u

static inline uint16_t be16(const uint8_t *at) { return (uint16_t)(at[0] << 8 | at[1]); }

static inline uint32_t be32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return __builtin_bswap32(value);
}

static inline uint64_t be64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return __builtin_bswap64(value);
}

static bool parse_erspan2(const uint8_t *at, const uint8_t *end, struct wire_copy *copy)
{
    /* Type I has no sequence number and no header of its own; nothing in it would name a stream. */
    if (!copy->has_sequence || (size_t)(end - at) <= ERSPAN_HEADER || at[0] >> 4 != 1)
        return false;
    copy->session = be16(at + 2) & 0x3FF;
    copy->key = be32(at + 4) & 0xFFFFF;
    copy->encapsulation = ENCAPSULATION_ERSPAN;
    copy->frame = at + ERSPAN_HEADER;
    copy->frame_length = (uint32_t)(end - copy->frame);
    return true;
}

bool wire_parse_gre(const uint8_t *buffer, size_t length, struct wire_copy *copy)
{
    if (length < 4 || length > UINT32_MAX)
        return false;
    const uint8_t *end = buffer + length;
    const uint16_t flags = be16(buffer);
    const uint16_t protocol = be16(buffer + 2);
    if (flags & ~GRE_KNOWN) /* routing, recursion, a version other than 0: RFC 2784 section 2.3 says discard */
        return false;
    const size_t header = 4 + (flags & GRE_CHECKSUM ? 4u : 0) + (flags & GRE_KEY ? 4u : 0) + (flags & GRE_SEQUENCE ? 4u : 0);
    if (length <= header)
        return false;
    const uint8_t *at = buffer + 4 + (flags & GRE_CHECKSUM ? 4 : 0);
    memset(copy, 0, sizeof *copy);
    if (flags & GRE_KEY) {
        copy->key = be32(at);
        at += 4;
    }
    if (flags & GRE_SEQUENCE) {
        copy->has_sequence = true;
        copy->sequence = be32(at);
        at += 4;
    }
    if (protocol == ETHERTYPE_ERSPAN2)
        return parse_erspan2(at, end, copy);
    if (protocol != ETHERTYPE_TEB || !(flags & GRE_KEY))
        return false;
    copy->encapsulation = ENCAPSULATION_GRE;
    copy->frame = at;
    copy->frame_length = (uint32_t)(end - at);
    return true;
}

bool wire_parse_vxlan(const uint8_t *buffer, size_t length, struct wire_copy *copy)
{
    if (length <= VXLAN_HEADER || length > UINT32_MAX || !(buffer[0] & VXLAN_VNI_VALID))
        return false;
    memset(copy, 0, sizeof *copy);
    copy->encapsulation = ENCAPSULATION_VXLAN;
    copy->key = be32(buffer + 4) >> 8;
    copy->frame = buffer + VXLAN_HEADER;
    copy->frame_length = (uint32_t)(length - VXLAN_HEADER);
    return true;
}

bool wire_skip_ipv4(const uint8_t *buffer, size_t length, uint8_t protocol, const uint8_t **payload, size_t *payload_length)
{
    if (length < 20 || buffer[0] >> 4 != 4 || buffer[9] != protocol)
        return false;
    const size_t header = (size_t)(buffer[0] & 0xF) * 4;
    if (header < 20 || header > length)
        return false;
    *payload = buffer + header;
    *payload_length = length - header;
    return true;
}

bool wire_take_trailer(struct wire_copy *copy, struct wire_trailer *trailer)
{
    if (copy->frame_length <= TRAILER_LENGTH)
        return false;
    const uint32_t captured = copy->frame_length - TRAILER_LENGTH;
    const uint8_t *at = copy->frame + captured;
    if (be32(at + 16) != TRAILER_MAGIC || at[14] != TRAILER_VERSION)
        return false;
    trailer->tai_ns = be64(at);
    trailer->original_length = be32(at + 8);
    trailer->flags = be16(at + 12);
    if (trailer->original_length < captured)
        return false;
    copy->frame_length = captured;
    return true;
}
