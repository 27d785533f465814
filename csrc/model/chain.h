// How the shape of a network is built whose layers form a chain. No torch.
#pragma once

#include <vector>

#include "network.h"

namespace ceprop {

// Returns the chain in which connection l joins layer l - 1 to layer l. `maps` are the input's and what is above each
// connection, the classes of a readout among them; `convolutions` are the first connections. An asynchronous step has
// two turns: even layers move before odd ones.
inline NetworkShape chain_of(const std::vector<MapShape>& maps, const std::vector<Convolution>& convolutions,
                             bool readout, bool free_feedback, bool asynchronous) {
  NetworkShape shape{};
  const int connections = static_cast<int>(maps.size()) - 1, layers = connections - readout;
  shape.input = maps[0];
  shape.layers.assign(maps.begin() + 1, maps.begin() + 1 + layers);
  shape.connections.reserve(connections);
  for (int l = 0; l < connections; ++l) {
    const bool is_convolution = l < static_cast<int>(convolutions.size());
    Connection connection{l - 1, l, l == layers ? Kind::readout : is_convolution ? Kind::convolution : Kind::dense, {}};
    if (is_convolution) connection.convolution = convolutions[l];
    if (free_feedback && l > 0 && l < layers) connection.feedback = l - 1;
    shape.connections.push_back(connection);
  }
  shape.turns.resize(asynchronous && layers > 1 ? 2 : 1);
  for (std::vector<int>& turn : shape.turns) turn.reserve(layers);
  for (int l = 0; l < layers; ++l) shape.turns[l % shape.turns.size()].push_back(l);
  shape.output = layers - 1;
  shape.classes = maps.back().units();
  return shape;
}

}  // namespace ceprop
