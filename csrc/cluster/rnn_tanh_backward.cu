#include "backward_instances.cuh"

#define FASTRNN_ROW(...) FASTRNN_BACKWARD_INSTANCES(RnnTanh, __VA_ARGS__)

std::vector<fastrnn::Instance<fastrnn::BackwardArguments>> fastrnn::cluster::rnn_tanh_backward() {
  return {FASTRNN_RNN_BACKWARD_SHAPES(FASTRNN_ROW)};
}
