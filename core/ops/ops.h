// The trunk's operations, together: include this in a module.
#pragma once

#include "core/ops/attention.h"
#include "core/ops/dropout.h"
#include "core/ops/elementwise.h"
#include "core/ops/embed.h"
#include "core/ops/layer_norm.h"
#include "core/ops/linear.h"
#include "core/ops/outer_product_mean.h"
#include "core/ops/pair_bias.h"
#include "core/ops/triangle.h"
#include "core/ops/views.h"
