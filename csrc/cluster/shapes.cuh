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

// By the gates of the state. Four gates' groups of 8 units hold whole tiles of gate rows; fewer need pairs of groups,
// so that a block of 32 units has two of them for its warps to share. In TF32 weights take twice the room, and where
// there are more than four gates not all of these shapes have it: only those are compiled that fit.
template <int GATES, class Element>
struct ForwardShapesOf
    : Shapes<Shape<64, 1, 4, 1>, Shape<128, 1, 8, 1>, Shape<256, 8, 2, 4>, Shape<512, 16, 2, 4>, Shape<768, 16, 3, 4>> {
};
template <>
struct ForwardShapesOf<3, Tf32>
    : Shapes<Shape<64, 1, 4, 1>, Shape<128, 4, 2, 4>, Shape<256, 8, 2, 4>, Shape<512, 16, 2, 4>> {};
template <>
struct ForwardShapesOf<2, Tf32> : ForwardShapesOf<3, Tf32> {};
template <class Element>
struct ForwardShapesOf<4, Element>
    : Shapes<Shape<64, 1, 8, 1>, Shape<128, 1, 8, 1>, Shape<256, 8, 4, 2>, Shape<512, 16, 4, 2>, Shape<768, 16, 6, 2>> {
};
template <>
struct ForwardShapesOf<4, Tf32>
    : Shapes<Shape<64, 1, 8, 1>, Shape<128, 4, 4, 2>, Shape<256, 8, 4, 2>, Shape<384, 16, 3, 2>, Shape<512, 16, 4, 2>> {
};
template <class Cell, class Element>
using ForwardShapes = ForwardShapesOf<Cell::U_GATES, Element>;

template <int GATES, class Element>
struct BackwardShapesOf : Shapes<Shape<64, 1, 4, 1>, Shape<128, 1, 8, 1>, Shape<256, 8, 8, 1>, Shape<512, 16, 8, 1>,
                                 Shape<768, 16, 12, 1>> {};
template <>
struct BackwardShapesOf<3, Tf32>
    : Shapes<Shape<64, 1, 4, 1>, Shape<128, 4, 8, 1>, Shape<256, 8, 8, 1>, Shape<512, 16, 8, 1>> {};
template <>
struct BackwardShapesOf<2, Tf32> : BackwardShapesOf<3, Tf32> {};
template <>
struct BackwardShapesOf<4, Tf32> : BackwardShapesOf<3, Tf32> {};
template <class Cell, class Element>
using BackwardShapes = BackwardShapesOf<Cell::U_GATES, Element>;

}  // namespace fastrnn::cluster
