// A warp's tiles of weights, in the order of the product: most in registers, the others in shared memory, `rest`.
#pragma once

#include "../memory.cuh"

namespace fastrnn::cluster {

template <class P>
DEVICE void keep_tile(int i, const word4& tile, word4 (&w)[P::REGISTER_TILES], char* rest) {
  if (P::lies_in_shared(i)) {
    store(rest + P::shared_before(i) * P::TILE_BYTES, tile);
  } else {
    w[i - P::shared_before(i)] = tile;
  }
}

// Asks for the first of the tiles in shared memory.
template <class P>
DEVICE void look_ahead(const char* rest, word4 (&ahead)[P::LOOKAHEAD]) {
#pragma unroll
  for (int n = 0; n < P::LOOKAHEAD && n < P::SHARED_TILES; ++n) ahead[n] = load<word4>(rest + n * P::TILE_BYTES);
}

// Adds to `sums` the product of tile `i`. In the place of one in shared memory, `ahead` gets one further on.
template <class P>
DEVICE void multiply_tile(int i, const word4 (&w)[P::REGISTER_TILES], const char* rest, word4 (&ahead)[P::LOOKAHEAD],
                          uint32_t b0, uint32_t b1, float (&sums)[4]) {
  const int n = P::shared_before(i);
  if (P::lies_in_shared(i)) {
    P::Element::mma(sums, ahead[n % P::LOOKAHEAD], b0, b1);
    if (n + P::LOOKAHEAD < P::SHARED_TILES) {
      ahead[n % P::LOOKAHEAD] = load<word4>(rest + (n + P::LOOKAHEAD) * P::TILE_BYTES);
    }
  } else {
    P::Element::mma(sums, w[i - n], b0, b1);
  }
}

}  // namespace fastrnn::cluster
