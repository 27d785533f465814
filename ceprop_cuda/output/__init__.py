"""What goes out to people and to disks: messages, files, tables, figures."""
