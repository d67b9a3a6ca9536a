//! An image's configuration (OCI image-spec, config.md): what it is for, what it runs, and which layers it has.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::digest::Digest;
use super::manifest::{DocumentError, Platform, or_default};

/// The whole document.
#[derive(Debug, Deserialize)]
pub(super) struct ImageConfig {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) os: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) variant: String,
    #[serde(default)]
    pub(super) created: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) config: RunConfig,
    pub(super) rootfs: RootFs,
}

impl ImageConfig {
    pub(super) fn platform(&self) -> Platform {
        // Old tools left the system out.
        let os = if self.os.is_empty() { "linux" } else { &self.os };
        Platform { os: os.into(), architecture: self.architecture.clone(), variant: self.variant.clone() }
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

#[derive(Debug, Deserialize)]
pub(super) struct RootFs {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) diff_ids: Vec<Digest>,
}

/// What to run, and how: the defaults that the image brings along.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// `USER[:GROUP]`, names or numbers; empty is root.
    #[serde(deserialize_with = "or_default")]
    pub user: String,
    /// `NAME=VALUE`.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// The program and its first words.
    #[serde(deserialize_with = "words")]
    pub entrypoint: Vec<String>,
    /// Further words, or the program if there is no entry point.
    #[serde(deserialize_with = "words")]
    pub cmd: Vec<String>,
    /// Empty is `/`.
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    /// Name or number; empty is SIGTERM.
    #[serde(deserialize_with = "or_default")]
    pub stop_signal: String,
    /// `PORT`, `PORT/tcp`, `PORT/udp`.
    #[serde(deserialize_with = "set", serialize_with = "as_set")]
    pub exposed_ports: Vec<String>,
    /// Directories.
    #[serde(deserialize_with = "set", serialize_with = "as_set")]
    pub volumes: Vec<String>,
    /// Anything.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

/// A list of words; old docker wrote a single one without the list.
fn words<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Option::deserialize(from)? {
        Some(Words::Many(words)) => words,
        Some(Words::One(word)) => vec![word],
        None => Vec::new(),
    })
}

/// A set as Go writes it: an object of empty objects.
fn set<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let map: Option<BTreeMap<String, serde::de::IgnoredAny>> = Option::deserialize(from)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

fn as_set<S: serde::Serializer>(names: &[String], to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Nothing {}
    to.collect_map(names.iter().map(|name| (name, Nothing {})))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
