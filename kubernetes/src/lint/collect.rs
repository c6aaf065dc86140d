//! Finds documents and objects in files of any kind.

use std::collections::HashSet;

use super::{
    Source, Spot,
    finding::Findings,
    rule::{DUPLICATE_KEY, YAML},
};
use crate::yaml::{self, Node};

/// The documents of one file.
pub(super) struct Document {
    pub(super) file: usize,
    pub(super) root: Node,
}

/// An object with a kind, or a bare document.
#[derive(Debug, Clone, Copy)]
pub(super) struct Object<'a> {
    pub(super) file: usize,
    pub(super) root: &'a Node,
}

impl<'a> Object<'a> {
    pub(super) fn kind(&self) -> &'a str {
        self.root.field("kind").and_then(Node::text).unwrap_or_default()
    }

    /// Group and version, such as `apps/v1`.
    pub(super) fn api(&self) -> &'a str {
        self.root.field("apiVersion").and_then(Node::text).unwrap_or_default()
    }

    pub(super) fn name(&self) -> &'a str {
        self.root.at(&["metadata", "name"]).and_then(Node::text).unwrap_or_default()
    }

    pub(super) fn namespace(&self) -> &'a str {
        self.root.at(&["metadata", "namespace"]).and_then(Node::text).unwrap_or_default()
    }

    pub(super) fn spec(&self) -> Option<&'a Node> {
        self.root.field("spec")
    }

    pub(super) fn spot(&self, node: &Node) -> Spot {
        Spot::of(self.file, node)
    }

    /// Where the object itself is named.
    pub(super) fn own_spot(&self) -> Spot {
        let named = self.root.at(&["metadata", "name"]).or_else(|| self.root.field("kind"));
        Spot::of(self.file, named.unwrap_or(self.root))
    }
}

/// Reads every file that is YAML or JSON.
pub(super) fn documents(sources: &[Source], findings: &mut Findings<'_>) -> Vec<Document> {
    let mut documents = Vec::new();
    for (file, source) in sources.iter().enumerate() {
        if is_script(source) {
            continue;
        }
        match yaml::documents(&source.text) {
            Ok(roots) => documents.extend(roots.into_iter().map(|root| Document { file, root })),
            // The allocator reads lines, not YAML: its own reader says what is wrong.
            Err(_) if is_allocator_file(source) => {}
            Err(error) => {
                let mut reason = error.to_string();
                if let Some(cause) = std::error::Error::source(&error) {
                    reason = format!("{reason}: {cause}");
                }
                let spot = Spot { file, place: error.place().clone(), value: String::new() };
                findings.add(&YAML, &spot, reason, "valid YAML; render templates before they are checked");
            }
        }
    }
    documents
}

/// A boot script, or the MIME user data that holds one.
pub(super) fn is_script(source: &Source) -> bool {
    let start = source.text.trim_start();
    start.starts_with("#!")
        || start.starts_with("MIME-Version:")
        || start.starts_with("Content-Type: multipart")
}

/// The allocator's own configuration file.
pub(super) fn is_allocator_file(source: &Source) -> bool {
    source.name.rsplit(['/', '\\']).next().is_some_and(|name| name == "allocator.yaml")
}

/// Every object: documents, and the items of lists.
pub(super) fn objects(documents: &[Document]) -> Vec<Object<'_>> {
    let mut objects = Vec::new();
    for document in documents {
        let object = Object { file: document.file, root: &document.root };
        let items = document.root.field("items").map(Node::items).unwrap_or_default();
        if object.kind().ends_with("List") && !items.is_empty() {
            objects.extend(items.iter().map(|root| Object { file: document.file, root }));
        } else {
            objects.push(object);
        }
    }
    objects
}

/// The API refuses, or worse, takes the last one.
pub(super) fn duplicate_keys(documents: &[Document], findings: &mut Findings<'_>) {
    for document in documents {
        document.root.walk(&mut |node| {
            let mut seen = HashSet::new();
            for entry in node.entries() {
                let Some(key) = entry.key.text() else { continue };
                // `<<` may be there more than once.
                if key != "<<" && !seen.insert(key) {
                    findings.add(
                        &DUPLICATE_KEY,
                        &Spot::of(document.file, &entry.key),
                        format!(
                            "{key} is already set in this mapping; which one counts depends on the reader"
                        ),
                        format!("{key} once"),
                    );
                }
            }
        });
    }
}
