//! Frames against damage and bounds.

mod wire;
