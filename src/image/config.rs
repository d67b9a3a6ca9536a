//! An image's configuration (OCI image-spec, config.md): what it is for, what it runs, and which
//! layers it has.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::descriptor::Platform;
use super::digest::Digest;
use super::json;
use super::manifest::DocumentError;

/// The whole document.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ImageConfig {
    pub(super) architecture: String,
    pub(super) os: String,
    pub(super) variant: String,
    pub(super) created: Option<String>,
    pub(super) config: RunConfig,
    pub(super) rootfs: RootFs,
}

impl ImageConfig {
    /// What it is for, if it says that: some tools leave system, architecture or both out.
    pub(super) fn platform(&self) -> Option<Platform> {
        Platform::stated(&self.os, &self.architecture, &self.variant)
    }

    /// Insists that there are as many diff_ids as layers.
    pub(super) fn check_layers(&self, layers: usize, what: &str) -> Result<(), DocumentError> {
        let diff_ids = self.rootfs.diff_ids.len();
        if layers == diff_ids {
            Ok(())
        } else {
            Err(DocumentError::LayerCount { what: what.into(), layers, diff_ids })
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RootFs {
    pub(super) diff_ids: Vec<Digest>,
}

/// What to run, and how: the defaults that the image brings along.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// `USER[:GROUP]`, names or numbers; empty is root.
    pub user: String,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// The program and its first words.
    #[serde(deserialize_with = "json::words")]
    pub entrypoint: Vec<String>,
    /// Further words, or the program if there is no entry point.
    #[serde(deserialize_with = "json::words")]
    pub cmd: Vec<String>,
    /// Empty is `/`.
    pub working_dir: String,
    /// Name or number; empty is SIGTERM.
    pub stop_signal: String,
    /// `PORT`, `PORT/tcp`, `PORT/udp`.
    #[serde(deserialize_with = "json::keys", serialize_with = "as_set")]
    pub exposed_ports: Vec<String>,
    /// Directories.
    #[serde(deserialize_with = "json::keys", serialize_with = "as_set")]
    pub volumes: Vec<String>,
    /// Anything.
    pub labels: BTreeMap<String, String>,
}

/// A set as Go writes it: an object of empty objects.
fn as_set<S: serde::Serializer>(names: &[String], to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Nothing {}
    to.collect_map(names.iter().map(|name| (name, Nothing {})))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
