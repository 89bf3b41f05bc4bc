// Which shapes of the grid kernels are compiled, as (units of a block, tiles of weights in registers at most).
#pragma once

// An RNN has one gate, so that a block of as many rows has more units.
#define FASTRNN_LSTM_FORWARD_SHAPE 16, 32
#define FASTRNN_GRU_FORWARD_SHAPE 16, 32
#define FASTRNN_RNN_FORWARD_SHAPE 32, 32

#define FASTRNN_LSTM_BACKWARD_SHAPE 16, 32
#define FASTRNN_GRU_BACKWARD_SHAPE 16, 32
#define FASTRNN_RNN_BACKWARD_SHAPE 32, 32
