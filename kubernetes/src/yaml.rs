//! YAML as a tree whose every value knows where it was written.
//!
//! Built on the event parser that `serde-saphyr` itself uses: its `Spanned`
//! needs a Rust type for what is read, and a linter reads documents of any
//! shape. Aliases are expanded, up to a bound; text stays text (a Kubernetes
//! label `true` and a label `"true"` are told apart by [`Value::Scalar`]).

use std::ops::Range;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span};

/// Values in one file, aliases expanded. Bounds what a few lines can become.
const MOST_NODES: usize = 500_000;

/// Where something was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The bytes of the file.
    pub bytes: Range<usize>,
}

/// One value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it was written; of an alias: where the alias is.
    pub place: Place,
    /// What it is.
    pub value: Value,
}

/// What a value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text. Unquoted text may be a number, a truth value or nothing.
    Scalar {
        /// After escapes are resolved.
        text: String,
        /// How it was written.
        style: Style,
    },
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the file.
    Map(Vec<Entry>),
}

/// How text was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Without quotes.
    Plain,
    /// In single or double quotes.
    Quoted,
    /// As a block, `|` or `>`.
    Block,
}

/// One line of a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Node,
    /// The value.
    pub value: Node,
}

/// Why a file is not YAML.
#[derive(Debug, thiserror::Error)]
pub enum YamlError {
    /// The syntax is wrong.
    #[error("not YAML at {}:{}", .place.line, .place.column)]
    Syntax {
        /// Where.
        place: Place,
        /// What the parser says.
        source: Box<ScanError>,
    },
    /// Aliases expand to more than anybody means.
    #[error("more than {MOST_NODES} values once aliases are expanded")]
    TooLarge {
        /// Where the bound was passed.
        place: Place,
    },
}

impl YamlError {
    /// Where reading stopped.
    pub fn place(&self) -> &Place {
        match self {
            YamlError::Syntax { place, .. } | YamlError::TooLarge { place } => place,
        }
    }
}

/// Reads every document of a file. Empty documents are left out.
pub fn documents(text: &str) -> Result<Vec<Node>, YamlError> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|source| YamlError::Syntax {
            place: Place {
                line: source.marker().line(),
                column: source.marker().col() + 1,
                bytes: source.marker().byte_offset().map_or(0..0, |at| at..at),
            },
            source: Box::new(source),
        })?;
        builder.take(event, &span)?;
    }
    Ok(builder.documents)
}

impl Node {
    /// The value of a mapping's key; the last one, if it is there twice.
    pub fn field(&self, name: &str) -> Option<&Node> {
        self.entry(name).map(|entry| &entry.value)
    }

    /// A mapping's line.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries().iter().rev().find(|entry| entry.key.text() == Some(name))
    }

    /// Walks down mappings.
    pub fn at(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(self, |node, name| node.field(name))
    }

    /// The text of a scalar.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// A sequence's values; nothing for anything else.
    pub fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// A mapping's lines; nothing for anything else.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// An unquoted truth value, as Kubernetes reads YAML.
    pub fn truth(&self) -> Option<bool> {
        match &self.value {
            Value::Scalar { text, style: Style::Plain } => match text.as_str() {
                "true" | "True" | "TRUE" => Some(true),
                "false" | "False" | "FALSE" => Some(false),
                _ => None,
            },
            _ => None,
        }
    }

    /// A whole number, quoted or not.
    pub fn number(&self) -> Option<u64> {
        self.text()?.parse().ok()
    }

    /// Whether nothing is written here.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, style: Style::Plain }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// Whether a placeholder stands here that something else will fill in.
    pub fn is_template(&self) -> bool {
        self.text().is_some_and(is_template)
    }

    /// This value and every one below it, mappings' keys left out.
    pub fn walk<'a>(&'a self, visit: &mut dyn FnMut(&'a Node)) {
        visit(self);
        match &self.value {
            Value::Scalar { .. } => {}
            Value::List(items) => items.iter().for_each(|item| item.walk(visit)),
            Value::Map(entries) => entries.iter().for_each(|entry| entry.value.walk(visit)),
        }
    }
}

/// Whether text holds `${...}` or `{{...}}`.
pub fn is_template(text: &str) -> bool {
    text.contains("${") || text.contains("{{")
}

/// Collects events into trees.
#[derive(Default)]
struct Builder {
    documents: Vec<Node>,
    /// Collections that are still open, with their anchor.
    open: Vec<(Node, usize, Option<Node>)>,
    /// Finished anchored values, by the parser's number.
    anchors: Vec<(usize, Node, usize)>,
    nodes: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: &Span) -> Result<(), YamlError> {
        let place = place(span);
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let style = match style {
                    ScalarStyle::Plain => Style::Plain,
                    ScalarStyle::Literal | ScalarStyle::Folded => Style::Block,
                    _ => Style::Quoted,
                };
                let value = Value::Scalar { text: text.into_owned(), style };
                self.finish(Node { place, value }, anchor, 1)?;
            }
            Event::SequenceStart(_, anchor, _) => {
                self.open.push((Node { place, value: Value::List(Vec::new()) }, anchor, None));
            }
            Event::MappingStart(_, anchor, _) => {
                self.open.push((Node { place, value: Value::Map(Vec::new()) }, anchor, None));
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some((mut node, anchor, _)) = self.open.pop() {
                    node.place.bytes.end = place.bytes.end.max(node.place.bytes.start);
                    self.finish(node, anchor, 1)?;
                }
            }
            Event::Alias(target) => {
                let found = self.anchors.iter().rev().find(|(anchor, ..)| *anchor == target);
                let value = found.map_or(null(), |(_, node, _)| node.value.clone());
                let size = found.map_or(1, |(.., size)| *size);
                self.finish(Node { place, value }, 0, size)?;
            }
            Event::DocumentStart(..) => self.anchors.clear(),
            _ => {}
        }
        Ok(())
    }

    /// Puts a finished value where it belongs.
    fn finish(&mut self, node: Node, anchor: usize, size: usize) -> Result<(), YamlError> {
        self.nodes += size;
        if anchor != 0 {
            let mut size = 0;
            node.walk(&mut |_| size += 1);
            // The copy counts as well: anchors within anchors copy again.
            self.nodes += size;
            if self.nodes <= MOST_NODES {
                self.anchors.push((anchor, node.clone(), size));
            }
        }
        if self.nodes > MOST_NODES {
            return Err(YamlError::TooLarge { place: node.place });
        }
        match self.open.last_mut() {
            None if node.is_null() => {}
            None => self.documents.push(node),
            Some((Node { value: Value::List(items), .. }, ..)) => items.push(node),
            Some((Node { value: Value::Map(entries), .. }, _, key)) => match key.take() {
                None => *key = Some(node),
                Some(key) => entries.push(Entry { key, value: node }),
            },
            Some(_) => {}
        }
        Ok(())
    }
}

fn null() -> Value {
    Value::Scalar { text: String::new(), style: Style::Plain }
}

fn place(span: &Span) -> Place {
    Place {
        line: span.start.line(),
        column: span.start.col() + 1,
        bytes: span.byte_range().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_knows_its_line_column_and_bytes() {
        let text = "# é\na: 1\nb:\n  - \"two\"\n  - c: {d: vier}\n---\n- é: x\n";
        let documents = documents(text).unwrap();
        assert_eq!(documents.len(), 2);
        let two = &documents[0].field("b").unwrap().items()[0];
        assert_eq!((two.place.line, two.place.column), (4, 5));
        assert_eq!(&text[two.place.bytes.clone()], "\"two\"");
        let four = documents[0].field("b").unwrap().items()[1].at(&["c", "d"]).unwrap();
        assert_eq!(&text[four.place.bytes.clone()], "vier");
        let x = documents[1].items()[0].field("é").unwrap();
        assert_eq!((x.place.line, x.place.column, &text[x.place.bytes.clone()]), (7, 6, "x"));
    }

    #[test]
    fn aliases_are_expanded_and_bounded() {
        let expanded = documents("a: &x {k: v}\nb: *x\n").unwrap();
        assert_eq!(expanded[0].at(&["b", "k"]).unwrap().text(), Some("v"));
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..9 {
            let inner = format!("*a{},", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{inner}]\n"));
        }
        assert!(matches!(documents(&bomb), Err(YamlError::TooLarge { .. })));
        // Never used, but copied at every level.
        let nested: String = (0..200).map(|level| format!("&a{level} [")).collect();
        let nested = format!("{nested}{}{}", "x,".repeat(20_000), "]".repeat(200));
        assert!(matches!(documents(&nested), Err(YamlError::TooLarge { .. })));
    }

    #[test]
    fn quoted_truth_is_text_and_empty_documents_do_not_count() {
        let read = documents("---\n---\na: \"true\"\nb: true\nc:\n---\n").unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].field("a").unwrap().truth(), None);
        assert_eq!(read[0].field("b").unwrap().truth(), Some(true));
        assert!(read[0].field("c").unwrap().is_null());
    }

    #[test]
    fn a_syntax_error_has_a_place() {
        let error = documents("a: 1\nb: [1, 2\nc: }\n").unwrap_err();
        assert!(error.place().line >= 2, "{error:?}");
    }
}
