# The data of class_init is constant.
s/(_class_init\(ObjectClass \*\w+, )void \*/\1const void */
# The memory core's headers moved.
s,"exec/(address-spaces|memory)\.h","system/\1.h",
