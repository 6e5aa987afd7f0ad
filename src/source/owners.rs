//! Names of users and groups by number, and back.

use std::collections::HashMap;
use std::fs;
use std::process::{Command, Stdio};

use crate::error::{Error, Result};
use crate::options::{AttributeRules, IdMap, To};
use crate::source::Owner;
use crate::sys::xattrs::AclEntry;

/// How often one run asks a directory service: each time is a process.
const MAX_ASKED: usize = 1024;
/// Services that say no more of owners than the files do.
const BUILT_IN: [&str; 3] = ["files", "compat", "systemd"];

/// User and group names by number, and back: from `/etc/passwd` and `/etc/group`, and where
/// nsswitch.conf(5) names another service, from getent(1), which asks that. A static program
/// has no name service of its own.
#[derive(Debug)]
pub struct Names {
    users: NameTable,
    groups: NameTable,
}

impl Default for Names {
    fn default() -> Names {
        Names { users: NameTable::of("passwd"), groups: NameTable::of("group") }
    }
}

impl Names {
    /// Adds the names for the numbers of an owner.
    pub fn fill(&mut self, owner: &mut Owner) {
        owner.user = self.users.name_of(owner.uid);
        owner.group = self.groups.name_of(owner.gid);
    }

    /// Adds the name of whom an entry of an ACL is about.
    pub fn fill_entry(&mut self, entry: &mut AclEntry) {
        if entry.is_user() {
            entry.name = self.users.name_of(entry.number);
        } else if entry.is_group() {
            entry.name = self.groups.name_of(entry.number);
        }
    }

    /// The numbers that an owner has here: as it is mapped, else by name where there is that
    /// name. Number 0 stays, whatever its name.
    pub fn numbers_of(&mut self, owner: &Owner, rules: &AttributeRules) -> (u32, u32) {
        let uid = self.users.map(owner.uid, &owner.user, &rules.user_map, rules.numeric_ids);
        let gid = self.groups.map(owner.gid, &owner.group, &rules.group_map, rules.numeric_ids);
        (uid, gid)
    }

    /// The number of whom an entry of an ACL is about.
    pub fn number_of(&mut self, entry: &AclEntry, rules: &AttributeRules) -> u32 {
        let (table, map) = if entry.is_user() {
            (&mut self.users, &rules.user_map)
        } else {
            (&mut self.groups, &rules.group_map)
        };
        table.map(entry.number, &entry.name, map, rules.numeric_ids)
    }

    /// Checks that everybody is here to whom something is to go.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for a name that nobody has.
    pub fn check(&mut self, rules: &AttributeRules) -> Result<()> {
        for (what, table, map) in
            [("user", &mut self.users, &rules.user_map), ("group", &mut self.groups, &rules.group_map)]
        {
            for to in map.targets() {
                if let To::Name(name) = to
                    && table.number_of(name).is_none()
                {
                    return Err(Error::Usage(format!(
                        "the destination has no {what} \"{name}\": name one that it has, or a number"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Users or groups.
#[derive(Debug)]
struct NameTable {
    /// What getent(1) calls it.
    database: &'static str,
    /// What is known.
    read: Option<Known>,
}

#[derive(Debug, Default)]
struct Known {
    names: HashMap<u32, String>,
    numbers: HashMap<String, u32>,
    /// How often another service may be asked.
    may_ask: usize,
}

impl NameTable {
    fn of(database: &'static str) -> NameTable {
        NameTable { database, read: None }
    }

    fn known(&mut self) -> &mut Known {
        self.read.get_or_insert_with(|| {
            let mut known = Known::default();
            known.add(&fs::read(format!("/etc/{}", self.database)).unwrap_or_default());
            let switch = fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
            known.may_ask =
                if has_another_service(&switch, self.database, &BUILT_IN) { MAX_ASKED } else { 0 };
            known
        })
    }

    fn name_of(&mut self, number: u32) -> String {
        if let Some(name) = self.known().names.get(&number) {
            return name.clone();
        }
        self.ask(&number.to_string());
        // Also that it has none is known from now on.
        self.known().names.entry(number).or_default().clone()
    }

    fn number_of(&mut self, name: &str) -> Option<u32> {
        let is_known = self.known().numbers.contains_key(name);
        // A number would be taken for one.
        let is_name = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
        if !is_known && is_name {
            self.ask(name);
        }
        self.known().numbers.get(name).copied()
    }

    fn map(&mut self, number: u32, name: &str, map: &IdMap, numeric: bool) -> u32 {
        match map.find(number, if numeric { "" } else { name }) {
            Some(To::Number(number)) => *number,
            Some(To::Name(name)) => self.number_of(name).unwrap_or(number),
            None if numeric || number == 0 => number,
            None => self.number_of(name).unwrap_or(number),
        }
    }

    /// Asks for one more.
    fn ask(&mut self, key: &str) {
        let database = self.database;
        let known = self.known();
        if known.may_ask == 0 {
            return;
        }
        known.may_ask -= 1;
        let mut command = Command::new("getent");
        let asked = command.args([database, key]).stdin(Stdio::null()).stderr(Stdio::null()).output();
        // Without that program only the files are known.
        if let Ok(answer) = asked {
            known.add(&answer.stdout);
        }
    }
}

impl Known {
    /// Adds lines of `name:password:number:…`; passwd(5), group(5).
    fn add(&mut self, lines: &[u8]) {
        // A name that is not UTF-8 cannot travel; the others can.
        for line in lines.split(|&byte| byte == b'\n').filter_map(|line| str::from_utf8(line).ok()) {
            let mut fields = line.split(':');
            if let (Some(name), Some(Ok(number))) = (fields.next(), fields.nth(1).map(str::parse)) {
                self.names.entry(number).or_insert_with(|| name.into());
                self.numbers.entry(name.into()).or_insert(number);
            }
        }
    }
}

/// Whether a database has more than the services that this program has itself; nsswitch.conf(5).
pub fn has_another_service(switch: &str, database: &str, built_in: &[&str]) -> bool {
    let lines = switch.lines().filter_map(|line| line.split('#').next()?.split_once(':'));
    let services = lines
        .filter(|(name, _)| name.trim() == database)
        .flat_map(|(_, services)| services.split_whitespace());
    let mut others = services.filter(|service| !service.starts_with('[') && !service.ends_with(']'));
    others.any(|service| !built_in.contains(&service))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_asked_where_there_is_one() {
        for (switch, expected) in [
            ("passwd: files systemd\ngroup: files ldap\n", false),
            ("# passwd: ldap\npasswd:\tfiles [SUCCESS=return] sss # and so on\n", true),
            ("passwd: files [NOTFOUND=return] # ldap", false),
            ("passwd_compat: nis\n", false),
            ("", false),
        ] {
            assert_eq!(has_another_service(switch, "passwd", &BUILT_IN), expected, "{switch}");
        }
    }

    #[test]
    fn the_first_line_of_a_name_or_number_counts() {
        let mut known = Known::default();
        known.add(b"a:x:5:\nb:x:5:\na:x:6:\n\xff:x:7:\nbroken\nc:x:no:\n");
        assert_eq!(known.names, HashMap::from([(5, "a".into()), (6, "a".into())]));
        assert_eq!(known.numbers, HashMap::from([("a".into(), 5), ("b".into(), 5)]));
    }

    #[test]
    fn nobody_but_root_is_root() {
        let mut names = Names::default();
        let owner = Owner { uid: 0, gid: 0, user: "daemon".into(), group: "daemon".into() };
        let rules = AttributeRules::default();
        assert_eq!(names.numbers_of(&owner, &rules), (0, 0));
        let other = Owner { uid: 99_999, gid: 99_999, user: "daemon".into(), group: "0".into() };
        assert_eq!(names.numbers_of(&other, &rules), (1, 99_999));
        let numeric = AttributeRules { numeric_ids: true, ..rules };
        assert_eq!(names.numbers_of(&other, &numeric), (99_999, 99_999));
    }
}
