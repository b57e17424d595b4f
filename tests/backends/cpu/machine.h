// The kernels of this machine's instruction sets, of those that a test is linked with.
#pragma once
#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

#include "isas.h"

namespace jaxq {

// The generic ones last; only those of the given names if there are any.
inline std::vector<const Kernels*> machine_kernels(const std::vector<std::string>& wanted = {}) {
  std::vector<const Kernels*> found;
  std::istringstream available(AvailableIsas());
  for (std::string name; std::getline(available, name, ',');) {
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), name) == wanted.end()) continue;
    Isa isa;
    FindIsa(name.c_str(), &isa);
    found.push_back(&kernels_of(isa));
  }
  return found;
}

}  // namespace jaxq
