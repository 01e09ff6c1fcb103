/* The parsers on arbitrary bytes: what they accept must lie within what they were given. */
#include <stdlib.h>

#include "core.h"

static void check(const uint8_t *data, size_t size, const struct wire_copy *copy)
{
    if (copy->frame < data || copy->frame_length == 0 || copy->frame + copy->frame_length != data + size)
        abort();
    struct wire_copy cut = *copy;
    struct wire_trailer trailer;
    if (!wire_take_trailer(&cut, &trailer))
        return;
    if (cut.frame_length == 0 || cut.frame_length + TRAILER_LENGTH != copy->frame_length || trailer.original_length < cut.frame_length)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct wire_copy copy;
    const uint8_t *payload;
    size_t payload_size;
    if (wire_parse_gre(data, size, &copy))
        check(data, size, &copy);
    if (wire_parse_vxlan(data, size, &copy))
        check(data, size, &copy);
    uint8_t address[16];
    if (ring_unwrap(data, size, address, &payload, &payload_size) && (payload < data || payload + payload_size > data + size))
        abort();
    if (wire_skip_ipv4(data, size, 47, &payload, &payload_size) && wire_parse_gre(payload, payload_size, &copy))
        check(payload, payload_size, &copy);
    return 0;
}
