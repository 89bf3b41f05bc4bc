#include "forward_instances.cuh"

#define FASTRNN_ROW(...) FASTRNN_FORWARD_INSTANCES(Lstm, __VA_ARGS__)

std::vector<fastrnn::Instance<fastrnn::ForwardArguments>> fastrnn::cluster::lstm_forward() {
  return {FASTRNN_LSTM_FORWARD_SHAPES(FASTRNN_ROW)};
}
