"""What callers may give: values of arguments, words of settings, options of commands."""
