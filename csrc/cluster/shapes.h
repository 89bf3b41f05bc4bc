// Which shapes of the cluster kernels are compiled, as X(UNITS, BLOCKS, M warps, K warps), from small to large: UNITS
// is the widest head that one serves, BLOCKS the size of its cluster, and warps divide the rows and the columns of
// w_hh.
#pragma once

// An LSTM's groups of 8 units hold whole tiles of gate rows; the other cells' need pairs of groups, so that a block of
// 32 units has two of them for its warps to share.
#define FASTRNN_LSTM_FORWARD_SHAPES(X) X(64, 1, 8, 1) X(128, 1, 8, 1) X(256, 8, 4, 2) X(512, 16, 4, 2) X(768, 16, 6, 2)
#define FASTRNN_GRU_FORWARD_SHAPES(X) X(64, 1, 4, 1) X(128, 1, 8, 1) X(256, 8, 2, 4) X(512, 16, 2, 4) X(768, 16, 3, 4)
#define FASTRNN_RNN_FORWARD_SHAPES(X) FASTRNN_GRU_FORWARD_SHAPES(X)

#define FASTRNN_LSTM_BACKWARD_SHAPES(X) \
  X(64, 1, 4, 1) X(128, 1, 8, 1) X(256, 8, 8, 1) X(512, 16, 8, 1) X(768, 16, 12, 1)
#define FASTRNN_GRU_BACKWARD_SHAPES(X) FASTRNN_LSTM_BACKWARD_SHAPES(X)
#define FASTRNN_RNN_BACKWARD_SHAPES(X) FASTRNN_LSTM_BACKWARD_SHAPES(X)

// In TF32 weights take twice the room.
#define FASTRNN_LSTM_FORWARD_TF32_SHAPES(X) \
  X(64, 1, 8, 1) X(128, 4, 4, 2) X(256, 8, 4, 2) X(384, 16, 3, 2) X(512, 16, 4, 2)
#define FASTRNN_GRU_FORWARD_TF32_SHAPES(X) X(64, 1, 4, 1) X(128, 4, 2, 4) X(256, 8, 2, 4) X(512, 16, 2, 4)
#define FASTRNN_RNN_FORWARD_TF32_SHAPES(X) FASTRNN_RNN_FORWARD_SHAPES(X)

#define FASTRNN_LSTM_BACKWARD_TF32_SHAPES(X) X(64, 1, 4, 1) X(128, 4, 8, 1) X(256, 8, 8, 1) X(512, 16, 8, 1)
#define FASTRNN_GRU_BACKWARD_TF32_SHAPES(X) FASTRNN_LSTM_BACKWARD_TF32_SHAPES(X)
#define FASTRNN_RNN_BACKWARD_TF32_SHAPES(X) FASTRNN_RNN_BACKWARD_SHAPES(X)
