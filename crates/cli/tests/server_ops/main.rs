//! What operators rely on: keys, limits, deadlines, signals, settings, logs. Each test has a server
//! of its own, the real binary with the model inside it.
#![cfg(unix)]

mod access;
mod contract;
mod hostile;
mod lifecycle;
mod limits;
mod server;
mod settings;
mod traces;
