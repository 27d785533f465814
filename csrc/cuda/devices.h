// What is known of this machine's GPUs, asked for and worked out once: both take longer than a launch.
#pragma once

#include "maps/plan.h"
#include "teams/plan.h"

namespace ceprop::cuda {

// Returns those of the device with this number; throws c10::Error if there is none.
Device properties_of(int index);

teams::Planned plan_for(int index, const teams::Shape& shape);
maps::Planned maps_for(int index, const NetworkShape& network, int64_t samples, int number_bytes);

}  // namespace ceprop::cuda
