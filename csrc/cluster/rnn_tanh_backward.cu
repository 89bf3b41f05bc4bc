#include "backward_instances.cuh"

#define FASTRNN_HALF_ROWS(...) FASTRNN_BACKWARD_HALF_ROWS(RnnTanh, __VA_ARGS__)
#define FASTRNN_TF32_ROW(...) FASTRNN_BACKWARD_TF32_ROW(RnnTanh, __VA_ARGS__)

std::vector<fastrnn::Instance<fastrnn::BackwardArguments>> fastrnn::cluster::rnn_tanh_backward() {
  return {FASTRNN_RNN_BACKWARD_SHAPES(FASTRNN_HALF_ROWS) FASTRNN_RNN_BACKWARD_TF32_SHAPES(FASTRNN_TF32_ROW)};
}
