#include "forward_instances.cuh"

#define FASTRNN_HALF_ROWS(...) FASTRNN_FORWARD_HALF_ROWS(RnnRelu, __VA_ARGS__)
#define FASTRNN_TF32_ROW(...) FASTRNN_FORWARD_TF32_ROW(RnnRelu, __VA_ARGS__)

std::vector<fastrnn::Instance<fastrnn::ForwardArguments>> fastrnn::cluster::rnn_relu_forward() {
  return {FASTRNN_RNN_FORWARD_SHAPES(FASTRNN_HALF_ROWS) FASTRNN_RNN_FORWARD_TF32_SHAPES(FASTRNN_TF32_ROW)};
}
