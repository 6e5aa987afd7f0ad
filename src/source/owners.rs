//! Names of users and groups by number, and back.

use std::collections::HashMap;
use std::fs;

use crate::source::Owner;

/// User and group names by number, and back, from `/etc/passwd` and
/// `/etc/group`: a static program has no other name service.
#[derive(Debug, Default)]
pub struct Names {
    users: Option<NameTable>,
    groups: Option<NameTable>,
}

#[derive(Debug, Default)]
struct NameTable {
    names: HashMap<u32, String>,
    numbers: HashMap<String, u32>,
}

impl Names {
    fn users(&mut self) -> &NameTable {
        self.users.get_or_insert_with(|| NameTable::read("/etc/passwd"))
    }

    fn groups(&mut self) -> &NameTable {
        self.groups.get_or_insert_with(|| NameTable::read("/etc/group"))
    }

    /// Adds the names for the numbers of an owner.
    pub fn fill(&mut self, owner: &mut Owner) {
        owner.user = self.users().names.get(&owner.uid).cloned().unwrap_or_default();
        owner.group = self.groups().names.get(&owner.gid).cloned().unwrap_or_default();
    }

    /// The numbers that an owner has here: by name where there is that name.
    pub fn numbers_of(&mut self, owner: &Owner) -> (u32, u32) {
        let uid = self.users().numbers.get(&owner.user).copied().unwrap_or(owner.uid);
        let gid = self.groups().numbers.get(&owner.group).copied().unwrap_or(owner.gid);
        (uid, gid)
    }
}

impl NameTable {
    /// Lines of `name:password:number:…`; passwd(5), group(5).
    fn read(path: &str) -> NameTable {
        let mut table = NameTable::default();
        // A name that is not UTF-8 cannot travel; the others can.
        let bytes = fs::read(path).unwrap_or_default();
        for line in bytes.split(|&byte| byte == b'\n').filter_map(|line| str::from_utf8(line).ok()) {
            let mut fields = line.split(':');
            if let (Some(name), Some(Ok(number))) = (fields.next(), fields.nth(1).map(str::parse)) {
                table.names.entry(number).or_insert_with(|| name.into());
                table.numbers.entry(name.into()).or_insert(number);
            }
        }
        table
    }
}
