// Which shapes of the cluster kernels are compiled, from small to large.
#pragma once

#include "../cells.cuh"
#include "../elements.cuh"

namespace fastrnn::cluster {

// UNITS, BLOCKS, M warps, K warps: UNITS is the widest head that it serves, BLOCKS the size of its cluster, and warps
// divide the rows and the columns of w_hh.
template <int... numbers>
struct Shape {};

template <class... Each>
struct Shapes {};

// An LSTM's groups of 8 units hold whole tiles of gate rows; the other cells' need pairs of groups, so that a block of
// 32 units has two of them for its warps to share. In TF32 weights take twice the room.
template <class Cell, class Element>
struct ForwardShapes
    : Shapes<Shape<64, 1, 4, 1>, Shape<128, 1, 8, 1>, Shape<256, 8, 2, 4>, Shape<512, 16, 2, 4>, Shape<768, 16, 3, 4>> {
};
template <>
struct ForwardShapes<Gru, Tf32>
    : Shapes<Shape<64, 1, 4, 1>, Shape<128, 4, 2, 4>, Shape<256, 8, 2, 4>, Shape<512, 16, 2, 4>> {};
template <class Element>
struct ForwardShapes<Lstm, Element>
    : Shapes<Shape<64, 1, 8, 1>, Shape<128, 1, 8, 1>, Shape<256, 8, 4, 2>, Shape<512, 16, 4, 2>, Shape<768, 16, 6, 2>> {
};
template <>
struct ForwardShapes<Lstm, Tf32>
    : Shapes<Shape<64, 1, 8, 1>, Shape<128, 4, 4, 2>, Shape<256, 8, 4, 2>, Shape<384, 16, 3, 2>, Shape<512, 16, 4, 2>> {
};

template <class Cell, class Element>
struct BackwardShapes : Shapes<Shape<64, 1, 4, 1>, Shape<128, 1, 8, 1>, Shape<256, 8, 8, 1>, Shape<512, 16, 8, 1>,
                               Shape<768, 16, 12, 1>> {};
template <>
struct BackwardShapes<Gru, Tf32>
    : Shapes<Shape<64, 1, 4, 1>, Shape<128, 4, 8, 1>, Shape<256, 8, 8, 1>, Shape<512, 16, 8, 1>> {};
template <>
struct BackwardShapes<Lstm, Tf32> : BackwardShapes<Gru, Tf32> {};

}  // namespace fastrnn::cluster
