#include "forward_instances.cuh"

#define FASTRNN_ROW(...) FASTRNN_FORWARD_INSTANCES(RnnTanh, __VA_ARGS__)

std::vector<fastrnn::Instance<fastrnn::ForwardArguments>> fastrnn::cluster::rnn_tanh_forward() {
  return {FASTRNN_RNN_FORWARD_SHAPES(FASTRNN_ROW)};
}
