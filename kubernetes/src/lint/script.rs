//! What a node's boot commands do to the allocator: a dry run of the commands
//! that matter, in order, on the file that the package installs.

use super::{
    Source, Spot, alloc,
    collect::{self, Object},
    finding::Findings,
    model::{Allocation, LABEL},
    rule::{BOOT_COMMAND, BOOT_NOT_STARTED, BOOT_ORDER, BOOT_SED},
    sed, shell,
};
use crate::yaml::Node;

/// Where the allocator's configuration lies.
pub(super) const CONFIG_PATH: &str = "/etc/nitro_enclaves/allocator.yaml";
/// AWS's unit, without its suffix.
pub(super) const UNIT: &str = "nitro-enclaves-allocator";
/// The unit that this project's allocator comes with.
pub(super) const OWN_UNIT: &str = "enclave-allocator";
/// What the package's file says (aws-nitro-enclaves-cli, bootstrap/allocator.yaml).
const INSTALLED: &str = "---\nmemory_mib: 512\ncpu_count: 2\n# cpu_pool: 2,3,6-9\n";

/// A node's boot, as far as enclaves are concerned.
pub(super) struct Bootstrap {
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) spot: Spot,
    /// What the allocator will set aside, if its file is known and good.
    pub(super) allocation: Option<Allocation>,
    /// Whether there are any commands.
    pub(super) has_commands: bool,
    /// The first use of dnf.
    pub(super) dnf: Option<Spot>,
    /// Where the allocator is started, or at least meant to be.
    pub(super) allocator: Option<Spot>,
    /// kubelet or nodeadm does not start when the allocator failed.
    pub(super) is_required: bool,
    /// The allocator is ordered before kubelet or nodeadm.
    pub(super) is_before: bool,
    /// The allocator's start, if that is when kubelet is up already.
    pub(super) late_start: Option<Spot>,
    /// kubelet is started again after that.
    pub(super) restarts_kubelet: bool,
    /// kubelet's `seccompDefault: true`.
    pub(super) seccomp_default: Option<Spot>,
    /// Whether the node is labelled by kubelet.
    pub(super) labels_node: bool,
}

/// One piece of script.
pub(super) struct Command {
    text: String,
    spot: Spot,
    /// Whether the spot covers exactly this text, so that it may be edited.
    whole: bool,
}

/// Every boot configuration among the files.
pub(super) fn bootstraps(
    sources: &[Source],
    objects: &[Object<'_>],
    findings: &mut Findings<'_>,
) -> Vec<Bootstrap> {
    let mut bootstraps: Vec<Bootstrap> =
        objects.iter().filter_map(|object| of_object(object, findings)).collect();
    for (file, source) in sources.iter().enumerate().filter(|(_, source)| collect::is_script(source)) {
        let spot = Spot::line(file, source, 1);
        let mut run = Run::new("script", &source.name, spot);
        let lines: Vec<&str> = source.text.lines().collect();
        for (index, text) in shell::statements(&lines) {
            let spot = Spot::of_line(file, &source.text, lines[index], index + 1);
            run.command(&Command { text, spot, whole: false }, findings);
        }
        bootstraps.push(run.finish(findings));
    }
    bootstraps
}

/// allocator.yaml files among the sources.
pub(super) fn allocator_files(
    sources: &[Source],
    objects: &[Object<'_>],
    findings: &mut Findings<'_>,
) -> Vec<Allocation> {
    let mut allocations = Vec::new();
    for (file, source) in sources.iter().enumerate() {
        let by_shape = objects.iter().any(|object| {
            let keys = object.root.entries();
            object.file == file
                && !keys.is_empty()
                && keys
                    .iter()
                    .all(|entry| matches!(entry.key.text(), Some("memory_mib" | "cpu_count" | "cpu_pool")))
        });
        if by_shape || collect::is_allocator_file(source) {
            allocations.extend(alloc::check_file(file, source, findings));
        }
    }
    allocations
}

fn of_object(object: &Object<'_>, findings: &mut Findings<'_>) -> Option<Bootstrap> {
    let spec = object.spec()?;
    let lists: &[&str] = match object.kind() {
        "NodeadmConfig" => &["preNodeadmCommands"],
        "KubeadmConfig" => &["preKubeadmCommands", "postKubeadmCommands"],
        "EKSConfig" => &["preBootstrapCommands", "postBootstrapCommands"],
        "EC2NodeClass" => &[],
        _ => return None,
    };
    let mut run = Run::new(object.kind(), object.name(), object.own_spot());
    for file in spec.field("files").map(Node::items).unwrap_or_default() {
        run.file(object, file);
    }
    let listed = |list: &&'static str| spec.field(list).map(|node| (list.starts_with("post"), node));
    for (is_late, node) in lists
        .iter()
        .filter_map(listed)
        .flat_map(|(is_late, node)| node.items().iter().map(move |item| (is_late, item)))
    {
        run.is_late = is_late;
        let Some(text) = node.text() else {
            let spot = object.spot(node);
            let raw = findings.raw(&spot).trim_end().replace('\'', "''");
            let reason = "YAML makes a mapping of it, because of `: `; the API takes text only";
            findings.add(&BOOT_COMMAND, &spot, reason, format!("'{raw}'"));
            continue;
        };
        let lines: Vec<&str> = text.lines().collect();
        let whole = lines.len() == 1;
        for (_, text) in shell::statements(&lines) {
            run.command(&Command { text, spot: object.spot(node), whole }, findings);
        }
    }
    if let Some(node) = spec.field("userData") {
        let lines: Vec<&str> = node.text().unwrap_or_default().lines().collect();
        for (_, text) in shell::statements(&lines) {
            run.command(&Command { text, spot: object.spot(node), whole: false }, findings);
        }
    } else if object.kind() == "EC2NodeClass" {
        return None;
    }
    let kubelet = spec.at(&["kubelet", "config", "seccompDefault"]);
    run.boot.seccomp_default =
        kubelet.filter(|node| node.truth() == Some(true)).map(|node| object.spot(node));
    let mut labels_node = false;
    spec.walk(&mut |node| {
        labels_node |= node.text().is_some_and(|text| text.contains(&format!("{LABEL}=enabled")))
    });
    run.boot.labels_node = labels_node;
    Some(run.finish(findings))
}

/// What is known of the allocator's file while commands run.
enum Config {
    Missing,
    Known(String, Spot),
    Unknown,
}

/// A dry run.
struct Run {
    boot: Bootstrap,
    config: Config,
    /// The first edit of a file that nothing had made yet.
    early_edit: Option<Spot>,
    enabled: Option<Command>,
    /// Commands now are those that run when kubelet is up.
    is_late: bool,
    /// Files whose text is known.
    files: Vec<(String, String)>,
}

impl Run {
    fn new(kind: &str, name: &str, spot: Spot) -> Run {
        let boot = Bootstrap {
            kind: kind.to_owned(),
            name: name.to_owned(),
            spot,
            allocation: None,
            has_commands: false,
            dnf: None,
            allocator: None,
            is_required: false,
            is_before: false,
            late_start: None,
            restarts_kubelet: false,
            seccomp_default: None,
            labels_node: false,
        };
        Run {
            boot,
            config: Config::Missing,
            early_edit: None,
            enabled: None,
            is_late: false,
            files: Vec::new(),
        }
    }

    /// A file that is there before any command runs.
    fn file(&mut self, object: &Object<'_>, file: &Node) {
        let path = file.field("path").and_then(Node::text).unwrap_or_default();
        let content = file.field("content");
        let text = content.and_then(Node::text).unwrap_or_default();
        if path == CONFIG_PATH {
            self.config = match content {
                Some(node) if file.field("encoding").is_none() && !node.is_template() => {
                    Config::Known(text.to_owned(), object.spot(node))
                }
                _ => Config::Unknown,
            };
        }
        self.unit_text(path, text);
        self.files.push((path.to_owned(), text.to_owned()));
    }

    /// Drop-ins that tie the allocator to kubelet or nodeadm.
    fn unit_text(&mut self, path: &str, text: &str) {
        let is_node_unit =
            |word: &str| word.contains("kubelet.service") || word.contains("nodeadm-run.service");
        let is_allocator = |word: &str| word.contains(UNIT) || word.contains(OWN_UNIT);
        for line in text.lines().map(str::trim) {
            let Some((key, value)) = line.split_once('=') else { continue };
            if is_node_unit(path) && matches!(key, "AssertPathExists" | "ConditionPathExists") {
                self.boot.is_required = true;
            }
            if is_node_unit(path) && is_allocator(value) {
                self.boot.is_required |= matches!(key, "Requires" | "BindsTo" | "Requisite");
                self.boot.is_before |= key == "After";
            }
            if is_allocator(path) && is_node_unit(value) {
                self.boot.is_required |= matches!(key, "RequiredBy");
                self.boot.is_before |= key == "Before";
            }
        }
    }

    fn command(&mut self, command: &Command, findings: &mut Findings<'_>) {
        self.boot.has_commands = true;
        if let Some((target, body)) = shell::written_file(&command.text) {
            if target == CONFIG_PATH {
                self.edit_after_start(command, findings);
                self.config = body.map_or(Config::Unknown, |body| Config::Known(body, command.spot.clone()));
            } else if let Some(body) = body {
                self.unit_text(&target, &body);
                self.files.push((target, body));
            }
            return;
        }
        for words in shell::commands(&command.text) {
            self.words(&words, command, findings);
        }
    }

    fn words(&mut self, words: &[String], command: &Command, findings: &mut Findings<'_>) {
        let words: Vec<&str> = words.iter().map(String::as_str).skip_while(|word| *word == "sudo").collect();
        let Some((&program, arguments)) = words.split_first() else { return };
        match program {
            "dnf" | "yum" | "amazon-linux-extras" => {
                if program == "dnf" && self.boot.dnf.is_none() {
                    self.boot.dnf = Some(command.spot.clone());
                }
                if arguments.contains(&"install")
                    && arguments.iter().any(|word| word.starts_with("aws-nitro-enclaves-cli"))
                {
                    self.install(findings);
                }
            }
            "cp" | "install" | "mv" if arguments.last() == Some(&CONFIG_PATH) => {
                self.copy(arguments, command, findings)
            }
            "sed" => self.sed(arguments, command, findings),
            "systemctl" => self.systemctl(arguments, command),
            "enclave-node" if arguments.first() == Some(&"allocator") => self.start(command),
            _ if program.ends_with("/enclave-node") && arguments.first() == Some(&"allocator") => {
                self.start(command);
            }
            _ if program.ends_with("nitro-enclaves-allocator") => self.start(command),
            _ => {}
        }
    }

    fn install(&mut self, findings: &mut Findings<'_>) {
        if let Some(spot) = self.early_edit.take() {
            findings.add(
                &BOOT_ORDER,
                &spot,
                format!(
                    "the package that brings {CONFIG_PATH} is installed later: sed fails, and the script ends"
                ),
                "install aws-nitro-enclaves-cli first",
            );
        }
        if matches!(self.config, Config::Missing) {
            self.config = Config::Known(INSTALLED.to_owned(), self.boot.spot.clone());
        }
    }

    fn sed(&mut self, arguments: &[&str], command: &Command, findings: &mut Findings<'_>) {
        let flags: Vec<&&str> = arguments.iter().filter(|word| word.starts_with('-')).collect();
        let others: Vec<&&str> = arguments.iter().filter(|word| !word.starts_with('-')).collect();
        let Some((path, scripts)) = others.split_last() else { return };
        if **path != CONFIG_PATH || !flags.iter().any(|flag| flag.contains('i')) {
            return;
        }
        self.edit_after_start(command, findings);
        let extended = flags.iter().any(|flag| !flag.starts_with("--") && flag.contains(['E', 'r']));
        let before = match &self.config {
            Config::Known(text, _) => text.clone(),
            Config::Missing => {
                self.early_edit.get_or_insert_with(|| command.spot.clone());
                INSTALLED.to_owned()
            }
            Config::Unknown => return,
        };
        let script = scripts.iter().map(|script| **script).collect::<Vec<_>>().join(";");
        self.config = match sed::apply(&script, extended, &before) {
            Some(after) if changes_nothing(&before, &after) && !already_says(&before, &script) => {
                findings.add(
                    &BOOT_SED,
                    &command.spot,
                    format!("no setting in {CONFIG_PATH} matches: the file keeps {:?}", settings(&before)),
                    "an expression that matches memory_mib, cpu_count or an uncommented cpu_pool; or write the file",
                );
                Config::Known(before, command.spot.clone())
            }
            Some(after) => Config::Known(after, command.spot.clone()),
            None => Config::Unknown,
        };
    }

    /// The allocator's file comes from another one.
    fn copy(&mut self, arguments: &[&str], command: &Command, findings: &mut Findings<'_>) {
        self.edit_after_start(command, findings);
        let from = arguments.len().checked_sub(2).map(|at| arguments[at]).unwrap_or_default();
        let known = self.files.iter().rev().find(|(path, _)| path == from);
        self.config = match known {
            Some((_, text)) => Config::Known(text.clone(), command.spot.clone()),
            None => Config::Unknown,
        };
    }

    fn systemctl(&mut self, arguments: &[&str], command: &Command) {
        if arguments.contains(&"restart")
            && arguments.iter().any(|word| word.trim_end_matches(".service") == "kubelet")
        {
            self.boot.restarts_kubelet = self.boot.late_start.is_some();
        }
        let units = arguments.iter().map(|word| word.strip_suffix(".service").unwrap_or(word));
        let mut units = units.filter(|unit| [UNIT, OWN_UNIT].contains(unit)).peekable();
        if units.peek().is_none() {
            return;
        }
        // deploy/systemd: the unit that comes with our package is ordered by itself.
        self.boot.is_before |= units.any(|unit| unit == OWN_UNIT);
        let verb = arguments.iter().find(|word| !word.starts_with('-'));
        match verb {
            Some(&("start" | "restart" | "reload-or-restart")) => self.start(command),
            Some(&("enable" | "reenable")) if arguments.contains(&"--now") => self.start(command),
            Some(&"enable") => {
                self.enabled = Some(Command {
                    text: command.text.clone(),
                    spot: command.spot.clone(),
                    whole: command.whole,
                });
            }
            _ => {}
        }
    }

    fn start(&mut self, command: &Command) {
        self.boot.allocator = Some(command.spot.clone());
        if self.is_late {
            self.boot.late_start = Some(command.spot.clone());
        }
    }

    fn edit_after_start(&self, command: &Command, findings: &mut Findings<'_>) {
        if self.boot.allocator.is_some() {
            findings.add(
                &BOOT_ORDER,
                &command.spot,
                "the allocator has already started with the settings from before this command",
                "edit the file before the allocator starts",
            );
        }
    }

    fn finish(mut self, findings: &mut Findings<'_>) -> Bootstrap {
        if let (Some(enabled), None) = (&self.enabled, &self.boot.allocator) {
            let replacement = enabled.text.replacen("enable", "enable --now", 1);
            let raw = findings.raw(&enabled.spot).to_owned();
            let finding = findings.add(
                &BOOT_NOT_STARTED,
                &enabled.spot,
                "the unit is enabled for the next boot only; on this boot nothing is set aside before kubelet starts",
                replacement,
            );
            if enabled.whole && raw.contains("enable") {
                finding.fix_with(&enabled.spot, raw.replacen("enable", "enable --now", 1));
            }
            self.boot.allocator = Some(enabled.spot.clone());
        }
        if let Config::Known(text, spot) = &self.config {
            self.boot.allocation = alloc::check_text(text, spot, findings);
        }
        self.boot
    }
}

/// Lines that the allocator reads.
fn settings(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#') && *line != "---");
    lines.collect::<Vec<_>>().join("; ")
}

fn changes_nothing(before: &str, after: &str) -> bool {
    settings(before) == settings(after)
}

/// An edit that sets what is set already is harmless.
fn already_says(before: &str, script: &str) -> bool {
    settings(before).split("; ").any(|line| script.contains(line))
}
