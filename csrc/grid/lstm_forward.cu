#include "forward_instances.cuh"

std::vector<fastrnn::Instance<fastrnn::ForwardArguments>> fastrnn::grid::lstm_forward() {
  return forward_instances<Lstm, FASTRNN_LSTM_FORWARD_SHAPE>();
}
