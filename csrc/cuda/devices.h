// What is known of this machine's GPUs, asked for and worked out once: both take longer than a launch.
#pragma once

#include "launch_plan.h"
#include "teams/plan.h"

namespace ceprop::cuda {

// Returns those of the device with this number; throws c10::Error if there is none.
Device properties_of(int index);
// Returns them with the number of clusters, which only teams ask for.
Device properties_with_clusters_of(int index);

Planned plan_for(int index, const Shape& shape, Precision precision);
teams::Planned plan_team_for(int index, const Shape& shape);

}  // namespace ceprop::cuda
