//! The objects of the wire: OpenAI's, and the fields that peers and this server add to them.
//!
//! A request is several groups of fields ([`crate::json::take`]); every group refuses what it does
//! not know. Replies are typed too, so that the OpenAPI document is generated from them.

pub mod chat;
pub mod completions;
pub mod messages;
pub mod response_object;
pub mod responses;
pub mod sampling;
pub mod thinking;
pub mod tokenize;
pub mod usage;
