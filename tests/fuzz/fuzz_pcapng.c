/* The block reader on arbitrary bytes, as recovery and replay use it on files that somebody else may have written. */
#include <stdlib.h>

#include "pcapng.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct pcapng_block block;
    size_t at = 0;
    uint32_t sum = 0;
    while (pcapng_read(data + at, size - at, &block) == PCAPNG_BLOCK) {
        if (block.length < 12 || block.length > size - at)
            abort();
        if (block.type == PCAPNG_EPB) {
            if (block.frame + block.captured + 4 > data + at + block.length)
                abort();
            for (uint32_t index = 0; index < block.captured; index++)
                sum += block.frame[index];
        }
        at += block.length;
    }
    return sum == UINT32_MAX ? 1 : 0;
}
