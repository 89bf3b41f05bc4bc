#include "forward_instances.cuh"

std::vector<fastrnn::Instance<fastrnn::ForwardArguments>> fastrnn::grid::rnn_tanh_forward() {
  return forward_instances<RnnTanh, FASTRNN_RNN_FORWARD_SHAPE>();
}
