# What a device holds of a chardev got another name.
s/\bCharBackend\b/CharFrontend/g
