/* OpenSSL's headers name it. */
#pragma once
typedef long ssize_t;
